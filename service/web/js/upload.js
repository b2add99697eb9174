// A request whose upload can be watched, which fetch does not tell of.

/** As `fetch(address, {method: "POST", headers, body, signal})`: a Response, or an error as fetch
 * has it. sent: called with 0..1 while the body goes out, 1 when all of it has. */
export function post(address, { headers, body, signal, sent }) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const aborted = () => failed(new DOMException("The request was cancelled.", "AbortError"));
    if (signal?.aborted) return aborted();
    const abort = () => request.abort();
    signal?.addEventListener("abort", abort, { once: true });
    request.open("POST", address);
    request.responseType = "blob";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", ({ loaded, total }) => sent(loaded / (total || 1)));
    request.upload.addEventListener("load", () => sent(1));
    request.addEventListener("load", () => {
      const { status, statusText, response } = request;
      done(new Response(response, { status, statusText, headers: headersOf(request) }));
    });
    request.addEventListener("error", () => failed(new TypeError("The network failed.")));
    request.addEventListener("abort", aborted);
    request.addEventListener("loadend", () => signal?.removeEventListener("abort", abort));
    request.send(body);
  });
}

function headersOf(request) {
  const lines = request.getAllResponseHeaders().trim().split("\r\n").filter(Boolean);
  return lines.map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 1).trim()];
  });
}
