// What a histogram of Prometheus says: {edges, counts, sum, count}, counts[i] at most edges[i].

/** What came between two scrapes. before: null for all since the start. */
export function between(now, before) {
  if (!before?.edges.length) return now;
  const old = new Map(before.edges.map((edge, index) => [edge, before.counts[index]]));
  return {
    edges: now.edges,
    counts: now.counts.map((count, index) => count - (old.get(now.edges[index]) ?? 0)),
    sum: now.sum - before.sum,
    count: now.count - before.count,
  };
}

/** The share at most `edge`, 0..1: null where nothing was observed, or no bucket ends there. */
export function shareWithin({ edges, counts, count }, edge) {
  const index = edges.indexOf(edge);
  return count && index >= 0 ? counts[index] / count : null;
}

export function mean({ sum, count }) {
  return count ? sum / count : null;
}

/** By linear interpolation within a bucket, as histogram_quantile does; null where nothing was
 * observed. Beyond the last edge: that edge. Source: Prometheus, Query functions. */
export function quantile({ edges, counts, count }, q) {
  if (!count) return null;
  const rank = q * count;
  const index = counts.findIndex((below) => below >= rank);
  if (edges[index] === Infinity) return edges[index - 1] ?? null;
  const [from, below] = index > 0 ? [edges[index - 1], counts[index - 1]] : [0, 0];
  const inside = counts[index] - below;
  return from + (edges[index] - from) * (inside ? (rank - below) / inside : 1);
}

/** [{from, to, count}]: each bucket by itself. */
export function buckets({ edges, counts }) {
  return edges.map((to, index) => ({
    from: index > 0 ? edges[index - 1] : 0,
    to,
    count: counts[index] - (index > 0 ? counts[index - 1] : 0),
  }));
}
