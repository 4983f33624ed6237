"""Runs moto's server on a free loopback port, says which, and ends with its standard input.

A process of its own, since moto changes the botocore that it is imported beside.
"""

import sys

from moto.server import ThreadedMotoServer

if __name__ == "__main__":
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()
