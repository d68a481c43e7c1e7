"""Teaches twistd the commands pyvpn-server and pyvpn-client."""

from twisted.application.service import ServiceMaker

server = ServiceMaker("PyVPN server", "pyvpn.server_tap", "PyVPN's hub.", "pyvpn-server")
client = ServiceMaker("PyVPN client", "pyvpn.client_tap", "A client of PyVPN.", "pyvpn-client")
