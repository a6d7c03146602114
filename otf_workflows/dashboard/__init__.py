"""The web page for campaigns and the launch pad; started by ``otf dashboard``.

Served from one small process: FastAPI, Jinja2 and pymongo. Neither jobflow nor any science is
imported; FireWorks only when a person acts.
"""
