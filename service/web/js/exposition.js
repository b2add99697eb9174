// Reads what /metrics says. Source: Prometheus, Exposition formats, text-based format.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", '"': '"', "\\": "\\" };

function numberOf(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}

function labelsOf(text = "") {
  const unescaped = (value) => value.replace(/\\(.)/g, (_, kind) => ESCAPED[kind] ?? kind);
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, unescaped(value)]));
}

/** One scrape: the series of each metric, and sums over those with the labels asked for. */
export class Metrics {
  /** text: as /metrics answers it. atMs: when. */
  constructor(text, atMs) {
    this.atMs = atMs;
    this.series = new Map();
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (!found) continue; // HELP, TYPE and the empty line at the end
      const [, name, labels, value] = found;
      if (!this.series.has(name)) this.series.set(name, []);
      this.series.get(name).push({ labels: labelsOf(labels), value: numberOf(value) });
    }
  }

  /** [{labels, value}] of a metric. wanted: labels that must be so. */
  rows(name, wanted = {}) {
    return (this.series.get(name) ?? []).filter(({ labels }) =>
      Object.entries(wanted).every(([label, value]) => labels[label] === value),
    );
  }

  /** 0 where there is no such series. */
  sum(name, wanted) {
    return this.rows(name, wanted).reduce((total, { value }) => total + value, 0);
  }

  /** The values that a label has, in order. */
  values(name, label) {
    return [...new Set(this.rows(name).map(({ labels }) => labels[label]))].sort();
  }

  /** {edges, counts, sum, count}: counts[i] observations were at most edges[i]. */
  histogram(name, wanted) {
    const counts = new Map();
    for (const { labels, value } of this.rows(`${name}_bucket`, wanted)) {
      const edge = numberOf(labels.le);
      counts.set(edge, (counts.get(edge) ?? 0) + value);
    }
    const edges = [...counts.keys()].sort((a, b) => a - b);
    return {
      edges,
      counts: edges.map((edge) => counts.get(edge)),
      sum: this.sum(`${name}_sum`, wanted),
      count: this.sum(`${name}_count`, wanted),
    };
  }
}
