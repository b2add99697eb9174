"""Exit code 0 when the server in this container says it is ready. The image has no curl."""

import os
import ssl
import sys
import urllib.error
import urllib.request


def main() -> int:
    port = os.environ.get("FCN_HTTP_PORT", "")
    if (
        not port.isdigit()
    ):  # not set, or the address of a service called fcn-http: the server's default
        port = "8000"
    scheme = "https" if os.environ.get("FCN_TLS_CERT") else "http"
    # The certificate is for the name that callers use. Nobody comes between on 127.0.0.1.
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    # Whatever proxy the container is to use, its own port is not behind it.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anybody)
    )
    try:
        with opener.open(f"{scheme}://127.0.0.1:{port}/readyz", timeout=4) as reply:
            print(reply.read(200).decode(errors="replace"))
    except (urllib.error.URLError, TimeoutError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
