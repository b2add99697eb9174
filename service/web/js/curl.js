// What the page asked, as a command.

import { segmentAddress, typeOf } from "./server.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** For a POSIX shell, in the folder of the image. saved: the file to write. withKey: the key is
 * taken from a variable, so that it is neither copied nor kept in the shell's history. */
export function curlCommand(file, request, saved, withKey) {
  const address = new URL(segmentAddress(request), document.baseURI).href;
  return [
    "curl --fail-with-body -sS",
    `-H ${quoted(`Content-Type: ${typeOf(file)}`)}`,
    ...(withKey ? ['-H "Authorization: Bearer $FCN_API_KEY"'] : []),
    `--data-binary ${quoted(`@${file.name}`)}`,
    `-o ${quoted(saved)}`,
    quoted(address),
  ].join(" \\\n  ");
}
