// The scrapes of the last minutes, so that "the last minute" can be told from "since the start".

const KEPT_MS = 10 * 60_000;

export class History {
  constructor() {
    this.scrapes = [];
  }

  get now() {
    return this.scrapes.at(-1);
  }

  /** A server that was started again, or another process of it, counts from its own start. */
  add(metrics) {
    const began = (scrape) => scrape.sum("process_start_time_seconds");
    if (this.now && began(this.now) !== began(metrics)) this.scrapes = [];
    this.scrapes.push(metrics);
    this.scrapes = this.scrapes.filter(({ atMs }) => atMs >= metrics.atMs - KEPT_MS);
  }

  /** The scrape to subtract. lastMs: how far to look back; Infinity: null, since the start. */
  before(lastMs) {
    if (lastMs === Infinity) return null;
    return this.scrapes.find(({ atMs }) => atMs >= this.now.atMs - lastMs);
  }

  /** Neighbours: [[older, newer]]. */
  get steps() {
    return this.scrapes.slice(1).map((newer, index) => [this.scrapes[index], newer]);
  }
}
