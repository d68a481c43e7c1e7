"""A web server that says its name and whom it sees: ``web.py NAME``; a program of its own."""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Both families on port 80, by one socket."""

    address_family = socket.AF_INET6
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Without the look-up of this machine's name that the library makes."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 80


class Page(BaseHTTPRequestHandler):
    """One line: ``NAME ADDRESS``."""

    name = ""

    def do_GET(self) -> None:
        """Answer, whatever is asked for."""
        source = self.client_address[0].removeprefix("::ffff:")
        body = f"{self.name} {source}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Page.name = sys.argv[1]
    Server(("::", 80), Page).serve_forever()
