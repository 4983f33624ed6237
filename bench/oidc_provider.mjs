// The peer of bench/auth.py: node's oidc-provider, client credentials, JWT access tokens,
// in-memory store, plain HTTP. Run with the folder that `npm install oidc-provider` filled and the client's
// secret; with a folder of a certificate and the client's SPIFFE ID besides, it does what we do on a connection:
// mutual TLS 1.3, `tls_client_auth`, tokens bound to the certificate.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { generateKeyPairSync } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const require = createRequire(pathToFileURL(process.argv[2] + '/'));
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));
const { privateKey } = generateKeyPairSync('ed25519');
const resource = 'urn:inference';
const [, , , secret, certificates, spiffeId] = process.argv;
const mutual = certificates !== undefined;
const provider = new Provider('http://127.0.0.1', {
  clients: [{
    client_id: 'bench',
    ...(mutual ? {
      token_endpoint_auth_method: 'tls_client_auth',
      tls_client_auth_san_uri: spiffeId,
      tls_client_certificate_bound_access_tokens: true,
    } : { client_secret: secret, token_endpoint_auth_method: 'client_secret_post' }),
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    id_token_signed_response_alg: 'EdDSA',
  }],
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'EdDSA' }] },
  scopes: ['models.infer'],
  ...(mutual ? { clientAuthMethods: ['tls_client_auth'] } : {}),
  features: {
    ...(mutual ? { mTLS: {
      enabled: true,
      tlsClientAuth: true,
      certificateBoundAccessTokens: true,
      getCertificate: (ctx) => ctx.req.socket.getPeerX509Certificate(),
      certificateAuthorized: (ctx) => ctx.req.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_uri'
        && ctx.req.socket.getPeerX509Certificate().subjectAltName === `URI:${expected}`,
    } } : {}),
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      getResourceServerInfo: () => ({
        scope: 'models.infer',
        accessTokenTTL: 300,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'EdDSA' } },
      }),
    },
  },
});
const said = () => console.log(`port ${server.address().port}`);
const read = (name) => readFileSync(`${certificates}/${name}`);
const server = mutual
  ? createServer({
    key: read('key.pem'), cert: read('cert.pem'), ca: read('ca.pem'),
    requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3',
  }, provider.callback()).listen(0, '127.0.0.1', said)
  : provider.listen(0, '127.0.0.1', said);
// Sides take turns for longer than the five seconds after which node ends an idle connection.
server.keepAliveTimeout = 120_000;
