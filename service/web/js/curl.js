// What the page asked, as a command.

import { segmentAddress, typeOf } from "./server.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** For a POSIX shell, in the folder of the picture. saved: the file to write. */
export function curlCommand(file, request, saved) {
  const address = new URL(segmentAddress(request), document.baseURI).href;
  return [
    "curl --fail-with-body -sS",
    `-H ${quoted(`Content-Type: ${typeOf(file)}`)}`,
    `--data-binary ${quoted(`@${file.name}`)}`,
    `-o ${quoted(saved)}`,
    quoted(address),
  ].join(" \\\n  ");
}
