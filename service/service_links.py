"""Tells variables that Kubernetes and Docker put into a container from settings.

Both name them after services, and those of one called `fcn`, or `fcn-` and more, begin as ours do.

Sources: Kubernetes, pkg/kubelet/envvars/envvars.go; Docker, daemon/links/links.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, TypeVar

V = TypeVar("V", str, str | None)

_PROTOCOL: Final = "(?:TCP|UDP|SCTP)"
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")
_NUMBER: Final = re.compile(r"\d+")
_ANYTHING: Final = re.compile(r".*", re.S)
_FORMS: Final = (
    (re.compile(r".+_SERVICE_PORT(_\w+)?"), _NUMBER),
    (re.compile(r".+_PORT"), _URL),  # a number there is somebody's idea of FCN_HTTP_PORT
    (re.compile(rf".+_PORT_\d+_{_PROTOCOL}(_START|_END)?"), _URL),
    (
        re.compile(rf".+_PORT_\d+_{_PROTOCOL}_(ADDR|PROTO|PORT|PORT_START|PORT_END)"),
        _ANYTHING,
    ),
)
_NAME: Final = re.compile(r"(?P<link>.+)_NAME")
_HOST: Final = re.compile(r".+_SERVICE_HOST")
_OF_LINKED: Final = re.compile(r"(?P<link>.+?)_ENV_.+")


def without_links(variables: Mapping[str, V]) -> dict[str, V]:
    """Leaves out the variables of services. The value counts, too: FCN_HTTP_PORT is a setting, but
    one that is tcp://10.0.0.1:80 is the address of a service called fcn-http."""
    upper = {name.upper(): value or "" for name, value in variables.items()}
    return {name: value for name, value in variables.items() if not _is_link(name.upper(), upper)}


def _is_link(name: str, variables: Mapping[str, str]) -> bool:
    value = variables[name]
    if _HOST.fullmatch(name):
        return _is_a_services(value)
    if linked := _OF_LINKED.fullmatch(name):  # Docker copies the other container's variables
        other = f"{linked['link']}_NAME"
        return other in variables and _is_link(other, variables)
    if named := _NAME.fullmatch(name):  # is /CONTAINER/LINK
        path = re.fullmatch(r"/[^/]+/([^/]+)", value)
        return path is not None and path[1].upper().replace("-", "_") == named["link"]
    return any(form.fullmatch(name) and its.fullmatch(value) for form, its in _FORMS)


def _is_a_services(address: str) -> bool:
    """Tells the address of a service from one to listen on, which somebody meant for FCN_HOST."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (ip.is_unspecified or ip.is_loopback)
