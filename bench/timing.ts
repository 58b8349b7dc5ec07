// How long things take: repeated until the clock can tell, and taken in turn when they are compared. Knows no kernels.

export interface Clock {
  /** Milliseconds. */
  now(): number;
  /** The shortest time that it tells within a tenth. */
  readonly shortest: number;
}

export const WALL: Clock = { now: () => performance.now(), shortest: 1 };

/** The time that all threads of this process ran. Some systems count it in ticks of 4 ms or 10 ms. */
export const CPU: Clock = {
  now() {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  },
  shortest: 100,
};

const WARM_UP = 150;
const LEAST_SAMPLES = 7;
/** Of one thing that is measured. */
const SPENT = 500;

/** Milliseconds of the fastest of many runs: others may use the machine, too. */
export function fastest(run: () => void, clock: Clock): number {
  const repeats = warm(run, clock);
  const samples: number[] = [];
  for (let spent = 0; samples.length < LEAST_SAMPLES || spent < SPENT; ) {
    samples.push(sample(run, repeats, clock));
    spent += repeats * samples.at(-1)!;
  }
  return Math.min(...samples);
}

/**
 * Milliseconds of things that are compared: all are warm before the first is measured, and they take turns in being first, so that
 * neither the machine's other work nor what one leaves behind falls on the same one each time.
 */
export function inTurn(runs: readonly (() => void)[], clock: Clock): number[][] {
  const repeats = runs.map((run) => warm(run, clock));
  const samples = runs.map((): number[] => []);
  for (let round = 0, spent = 0; round < LEAST_SAMPLES || spent < SPENT * runs.length; round++) {
    const order = [...runs.keys()];
    for (const i of round % 2 === 0 ? order : order.reverse()) {
      const ms = sample(runs[i], repeats[i], clock);
      samples[i].push(ms);
      spent += repeats[i] * ms;
    }
  }
  return samples;
}

/** Runs it for a while; how many runs the clock can tell. */
function warm(run: () => void, clock: Clock): number {
  const start = clock.now();
  let runs = 0;
  let spent = 0;
  do {
    run();
    runs++;
    spent = clock.now() - start;
  } while (spent < Math.max(WARM_UP, clock.shortest));
  return Math.ceil((clock.shortest * runs) / spent);
}

/** Of one run, in milliseconds. */
function sample(run: () => void, repeats: number, clock: Clock): number {
  const start = clock.now();
  for (let i = 0; i < repeats; i++) run();
  return (clock.now() - start) / repeats;
}
