// Elements made by hand: there is no framework.

/** `element("td", "share", "12 %")`: a tag, its class ("" for none) and what is in it, as text or
 * elements. Text stays text: nothing that a server or a file name says becomes markup. */
export function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

/** Rows of a list of terms, as a <dl> has them. entries: [[term, value]]. */
export function terms(entries) {
  return entries.map(([term, value]) =>
    element("div", "", element("dt", "", term), element("dd", "", String(value))),
  );
}
