"""The decision: bytes and a clock in, a caller or a refusal out. Imports neither grpc nor asyncpg."""
