// The images that were given, segmented one after the other.

import { Job } from "./job.js";

export class Work extends EventTarget {
  #ask;
  #queue = []; // of jobs that wait, the next first
  #running = null; // {job, controller}

  /** Dispatches "change" with a job whose state changed, "sent" with one of which more has gone out.
   * ask: gives {request: {version, scale}, maxBytes} for the next job. */
  constructor(ask) {
    super();
    this.#ask = ask;
    this.jobs = [];
    this.done = 0; // since there was nothing left
  }

  /** How many are not answered yet. */
  get left() {
    return this.#queue.length + (this.#running ? 1 : 0);
  }

  /** Takes files in, and gives the first job made of them. What came last goes first. */
  add(files) {
    const jobs = files.map((file) => new Job(file));
    this.jobs.push(...jobs);
    this.first(jobs);
    return jobs[0];
  }

  /** Does these, anew if need be, before all others. */
  first(jobs) {
    if (!this.left) this.done = 0;
    const stopped = this.#stop();
    const later = [...stopped, ...this.#queue].filter((job) => !jobs.includes(job));
    this.#queue = [...jobs, ...later];
    for (const job of this.#queue) this.#set(job, "waiting");
    this.#go();
  }

  cancel() {
    const left = [...this.#stop(), ...this.#queue];
    this.#queue = [];
    for (const job of left) this.#set(job, "cancelled");
  }

  clear() {
    this.cancel();
    this.jobs = [];
  }

  /** The job that was running, in a list, or an empty one. */
  #stop() {
    if (!this.#running) return [];
    const { job, controller } = this.#running;
    this.#running = null;
    controller.abort();
    return [job];
  }

  async #go() {
    if (this.#running || !this.#queue.length) return;
    const job = this.#queue.shift();
    const controller = new AbortController();
    this.#running = { job, controller };
    const sent = () => this.dispatchEvent(new CustomEvent("sent", { detail: job }));
    this.#set(job, "busy");
    let state = "done";
    try {
      const { request, maxBytes } = this.#ask();
      await job.run(request, maxBytes, controller.signal, sent);
    } catch (error) {
      state = "failed";
      job.problem = error;
    }
    if (controller.signal.aborted) return; // cancelled, or another went first
    this.#running = null;
    this.done += 1;
    this.#set(job, state);
    this.#go();
  }

  #set(job, state) {
    job.state = state;
    if (state !== "failed") job.problem = null;
    this.dispatchEvent(new CustomEvent("change", { detail: job }));
  }
}
