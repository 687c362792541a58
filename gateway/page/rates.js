// Counters become rates over the last seconds. Workers report once a second, so a window of one second would jump.

const kWindow = 5;    // seconds
const kHistory = 90;  // seconds that the curves show

const kCounters = ["activated", "resident", "shipped", "on_host", "bytes_shipped", "host_bytes_read", "copy_busy_seconds",
  "copy_wait_seconds", "host_wait_seconds", "compute_seconds"];

export class Rates {
  samples = [];
  history = [];

  add(engine, now) {
    const last = this.samples.at(-1);
    if (last && restarted(last.engine, engine)) this.samples = [];
    this.samples.push({ now, engine });
    while (this.samples.length > 2 && now - this.samples[1].now >= kWindow) this.samples.shift();
    this.history.push({ now, prompt: this.tokens("prompt_total"), generated: this.tokens("generated_total"), hits: this.hitRate() });
    while (now - this.history[0].now > kHistory) this.history.shift();
  }

  get seconds() {
    return this.samples.at(-1).now - this.samples[0].now;
  }
  difference(valueOf) {
    return this.seconds > 0 ? Math.max(0, valueOf(this.samples.at(-1).engine) - valueOf(this.samples[0].engine)) : 0;
  }
  // Per second.
  of(valueOf) {
    return this.seconds > 0 ? this.difference(valueOf) / this.seconds : 0;
  }
  tokens(name) {
    return this.of((engine) => engine.tokens[name]);
  }
  // What worker `index` counted within the window.
  worker(index) {
    const counted = {};
    for (const name of kCounters) counted[name] = this.difference((engine) => engine.workers[index]?.experts[name] ?? 0);
    return counted;
  }
  // Of all workers within the window; null while nothing ran.
  hitRate() {
    let activated = 0, resident = 0;
    for (let i = 0; i < this.samples.at(-1).engine.workers.length; ++i) {
      const counted = this.worker(i);
      activated += counted.activated;
      resident += counted.resident;
    }
    return activated > 0 ? resident / activated : null;
  }
}

// The coordinator or a worker began anew: its counters did, too.
function restarted(before, after) {
  return after.uptime_seconds < before.uptime_seconds || after.workers.length !== before.workers.length ||
    after.workers.some((worker, i) => worker.experts.activated < before.workers[i].experts.activated);
}
