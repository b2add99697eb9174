// The charts of the status page.

import { element } from "./element.js";
import { buckets } from "./histogram.js";

const SVG = "http://www.w3.org/2000/svg";
const SHORTEST_S = 0.005; // what is faster is one column

/** Columns into `root`, one for each bucket; those beyond the target are hatched. */
export function columns(root, histogram, targetS) {
  const all = buckets(histogram).filter(({ to }) => to >= SHORTEST_S);
  const most = Math.max(...all.map(({ count }) => count), 1);
  root.replaceChildren(
    ...all.map(({ to, count }) => {
      const edge = to === Infinity ? "more" : String(Math.round(to * 1000));
      const column = element("span", "column");
      column.style.setProperty("--part", 0.98 * (count / most));
      column.style.setProperty("--least", count ? "2px" : "0");
      const box = element("div", to > targetS ? "over" : "", column, element("span", "edge", edge));
      box.classList.toggle("last-in", to === targetS);
      box.title = `${count} requests of up to ${edge} ms`;
      return box;
    }),
  );
}

/** A line over time. values: numbers, or null where there is none. most: the top of the chart.
 * now: what is written beside the title. */
export function line(title, values, most, now) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}, now ${now}`);
  let run = [];
  const draw = () => {
    if (run.length) {
      const drawn = document.createElementNS(SVG, "polyline");
      if (run.length === 1) run.push(run[0].replace(/^[\d.]+/, (x) => Number(x) + 0.3));
      drawn.setAttribute("points", run.join(" "));
      svg.append(drawn);
    }
    run = [];
  };
  values.forEach((value, index) => {
    if (value === null) return draw();
    const x = (100 * index) / Math.max(1, values.length - 1);
    run.push(`${x.toFixed(2)},${(96 - (92 * value) / (most || 1)).toFixed(2)}`);
  });
  draw();
  const head = element("div", "line-title", element("span", "", title), element("span", "", now));
  return [head, svg];
}
