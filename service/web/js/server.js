// What this page asks of the server. Addresses are relative: a proxy may put it under a prefix.

import { Key } from "./key.js";
import { post } from "./upload.js";

/** An answer that is an error, as problem+json tells it (RFC 9457), or one of the page's own. */
export class Problem extends Error {
  /** retryAfterS: when the server asks to come again, null where it does not. */
  constructor(title, detail, requestId = "", retryAfterS = null) {
    super(`${title}: ${detail}`);
    this.title = title;
    this.detail = detail;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS;
  }
}

/** The API key, where the server wants one: see key.js. */
export const key = new Key(document);

async function reach(address, options) {
  try {
    return await (options.sent ? post : fetch)(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "No answer",
      "The server could not be reached, or hung up. Check that it runs, and try again.",
    );
  }
}

/** The response; throws Problem for every answer but 2xx, and when there is none. */
async function ask(address, options = {}) {
  let response;
  let sent;
  do {
    sent = key.value;
    response = await reach(address, { ...options, headers: { ...options.headers, ...key.headers } });
  } while (response.status === 401 && (await key.wanted(sent)));
  if (response.ok) return response;
  if (response.status === 401) {
    throw new Problem(
      "No API key",
      "This server answers those who have a key: try again to give it, or reload the page.",
    );
  }
  const text = await response.text();
  try {
    const { title, detail, request_id } = JSON.parse(text);
    const retryAfterS = Number(response.headers.get("Retry-After")) || null;
    if (title && detail) throw new Problem(title, detail, request_id, retryAfterS);
  } catch (error) {
    if (error instanceof Problem) throw error;
  }
  // Not ours: a proxy in between.
  throw new Problem(`Error ${response.status}`, text.slice(0, 300) || response.statusText);
}

/** {outputs, latency_target_s, max_image_bytes}: what holds at this server. */
export async function service() {
  return (await ask("./", { headers: { Accept: "application/json" } })).json();
}

/** Each version that is ready: {model, description, version, isDefault, contract, precision, provider}. */
export async function versions() {
  const { models } = await (await ask("v1/models")).json();
  return models.flatMap((model) =>
    model.versions
      .filter(({ state, contract }) => state === "ready" && contract)
      .map((version) => ({
        ...version,
        model: model.name,
        description: model.description,
        // Asked for without a name, or without a number, the server takes these.
        isDefaultModel: model.is_default,
        isDefaultVersion: version.version === model.default_version,
      })),
  );
}

const RAW_TYPES = ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"];

/** The Content-Type to send a file with; the server tells the format from the bytes. */
export function typeOf(file) {
  return RAW_TYPES.includes(file.type) ? file.type : "application/octet-stream";
}

/** The address of `segment` with its query: what is not the default, in the order of the API. */
export function segmentAddress({ version, output, alpha, classes, scale }) {
  const query = new URLSearchParams();
  if (!version.isDefaultModel) query.set("model", version.model);
  if (!version.isDefaultVersion) {
    query.set("model", version.model);
    query.set("version", version.version);
  }
  if (output !== "label_map") query.set("output", output);
  if (output === "overlay") query.set("alpha", alpha);
  if (scale && scale !== "auto") query.set("scale", scale);
  if (classes) query.set("classes", classes.join(","));
  const text = query.toString().replaceAll("%2C", ",");
  return text ? `segment?${text}` : "segment";
}

/** Posts the image. {blob, stages: [{name, ms}], tripMs}. sent: told how much of it has gone out,
 * 0..1. */
export async function segment(file, request, signal, sent = () => {}) {
  const began = performance.now();
  const response = await ask(segmentAddress(request), {
    method: "POST",
    headers: { "Content-Type": typeOf(file) },
    body: file,
    signal,
    sent,
  });
  const blob = await response.blob();
  return {
    blob,
    stages: stagesOf(response.headers.get("Server-Timing") ?? ""),
    tripMs: performance.now() - began,
  };
}

/** "decode;dur=1.5, queue;dur=0" -> [{name, ms}]. Source: W3C Server Timing. */
export function stagesOf(header) {
  return [...header.matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)].map(([, name, ms]) => ({
    name,
    ms: Number(ms),
  }));
}
