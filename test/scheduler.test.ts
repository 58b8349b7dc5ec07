import { describe, expect, test } from "vitest";
import { uniform } from "../src/sampling.ts";
import {
  type Kept,
  type Plan,
  Scheduler,
  type SchedulerLimits,
  Sequence,
  type SequenceOptions,
} from "../src/scheduler.ts";

const LIMITS: SchedulerLimits = {
  slots: 3,
  pageSize: 4,
  totalPages: 10,
  contextLength: 32,
  chunk: 8,
  rollbackLimit: Number.POSITIVE_INFINITY,
  maxQueue: 4,
};

function make(limits: Partial<SchedulerLimits> = {}) {
  const scheduler = new Scheduler({ ...LIMITS, ...limits });
  const submit = (options: Partial<SequenceOptions> & { length?: number } = {}): Sequence => {
    const ids = options.ids ?? Array.from({ length: options.length ?? 5 }, (_, i) => i);
    const sequence = new Sequence({ maxNewTokens: 4, ...options, ids });
    scheduler.submit(sequence);
    return sequence;
  };
  /** Plans a step and gives every owner a token. */
  const step = (token = 1): Plan | undefined => {
    scheduler.admit();
    const plan = scheduler.plan();
    for (const owner of plan?.owners ?? []) if (owner.maxNewTokens > 0) owner.accept(token);
    return plan;
  };
  return { scheduler, submit, step };
}

describe("admission", () => {
  test("reserves pages for the prompt and the longest answer", () => {
    const { scheduler, submit } = make();
    const a = submit({ length: 5, maxNewTokens: 4 }); // 9 positions: 3 pages of 4
    expect(scheduler.admit()).toEqual([a]);
    expect(a.place?.pages.length).toBe(3);
    expect([scheduler.freePages, scheduler.freeSlots]).toEqual([7, 2]);
    scheduler.end(a);
    expect([scheduler.freePages, scheduler.freeSlots]).toEqual([10, 3]);
  });

  test("is first come, first served: a small request does not overtake one that waits for pages", () => {
    const { scheduler, submit } = make();
    const first = submit({ length: 24, maxNewTokens: 8 }); // 8 of 10 pages
    const big = submit({ length: 8, maxNewTokens: 4 }); // 3 pages
    const small = submit({ length: 2, maxNewTokens: 1 }); // 1 page, would fit
    expect(scheduler.admit()).toEqual([first]);
    expect([scheduler.queued, scheduler.canAdmit]).toEqual([2, false]);
    scheduler.end(first);
    expect(scheduler.canAdmit).toBe(true);
    expect(scheduler.admit()).toEqual([big, small]);
  });

  test("no more sequences than slots, nor than rows of a step", () => {
    const { scheduler, submit } = make({ chunk: 2 });
    for (let i = 0; i < 3; i++) submit({ length: 2, maxNewTokens: 2 });
    expect(scheduler.totalSlots).toBe(2);
    expect(scheduler.admit().length).toBe(2);
  });

  test("what can never fit is refused with both numbers", () => {
    const { submit } = make();
    expect(() => submit({ length: 30, maxNewTokens: 3 })).toThrow(
      expect.objectContaining({
        code: "INPUT_TOO_LONG",
        limit: 32,
        actual: 33,
        message: expect.stringMatching(/30.*3 new.*33.*32/),
      }),
    );
    const small = make({ totalPages: 2 });
    expect(() => small.submit({ length: 8, maxNewTokens: 1 })).toThrow(
      expect.objectContaining({ code: "INPUT_TOO_LONG", limit: 8, message: expect.stringContaining("kvTokens") }),
    );
    expect(() => make({ totalPages: 0 }).submit({ length: 30, maxNewTokens: 2 })).not.toThrow();
  });

  test("the queue is bounded; requests for which slots are free do not count", () => {
    const { scheduler, submit } = make({ maxQueue: 1 });
    for (let i = 0; i < 4; i++) submit({ length: 2, maxNewTokens: 1 });
    expect(() => submit()).toThrow(expect.objectContaining({ code: "QUEUE_FULL", limit: 1 }));
    expect(scheduler.admit().length).toBe(3);
    expect(() => submit()).toThrow(expect.objectContaining({ code: "QUEUE_FULL" }));
  });

  test("a request that waits can be taken out again", () => {
    const { scheduler, submit } = make({ slots: 1 });
    const [a, b, c] = [submit(), submit(), submit()];
    scheduler.admit();
    scheduler.end(b);
    scheduler.end(a);
    expect(scheduler.admit()).toEqual([c]);
    expect(b.state).toBe("ended");
  });

  test("models without full layers need no pages", () => {
    const { scheduler, submit } = make({ totalPages: 0 });
    const a = submit();
    scheduler.admit();
    expect(a.place).toEqual({ slot: 0, pages: [], written: 0 });
  });
});

describe("steps", () => {
  test("prompts come in chunks; only the last row is selected", () => {
    const { submit, step } = make();
    submit({ length: 19 });
    const plans = [step(), step(), step()];
    expect(plans.map((plan) => plan?.positions)).toEqual([
      [0, 1, 2, 3, 4, 5, 6, 7],
      [8, 9, 10, 11, 12, 13, 14, 15],
      [16, 17, 18],
    ]);
    expect(plans.map((plan) => plan?.selected)).toEqual([[], [], [2]]);
    expect(plans.map((plan) => plan?.lengths[0])).toEqual([19, 19, 19]);
    const decode = step();
    expect(decode).toMatchObject({ tokens: [1], positions: [19], lengths: [20], selected: [0], decodeOnly: true });
  });

  test("rows of answers come first, then prompts in their order", () => {
    const { submit, step } = make();
    const a = submit({ length: 2 });
    step();
    const b = submit({ length: 5 });
    const c = submit({ length: 9 });
    const mixed = step()!;
    expect(mixed.sequences).toEqual([a, b, b, b, b, b, c, c].map((sequence) => sequence.place!.slot));
    expect(mixed.positions).toEqual([2, 0, 1, 2, 3, 4, 0, 1]);
    expect(mixed.selected).toEqual([0, 5]);
    expect(mixed.owners).toEqual([a, b]);
    expect(mixed.decodeOnly).toBe(false);
    const next = step()!;
    expect(next.owners).toEqual([a, b]);
    expect(next.positions).toEqual([3, 5, 2, 3, 4, 5, 6, 7]);
    step();
    expect(step()?.decodeOnly).toBe(true);
  });

  test("paused sequences have no rows, but keep their place", () => {
    const { scheduler, submit, step } = make();
    const [a, b] = [submit({ length: 2 }), submit({ length: 2 })];
    step();
    a.paused = true;
    expect(step()?.owners).toEqual([b]);
    a.paused = false;
    b.paused = true;
    expect(step()?.owners).toEqual([a]);
    a.paused = true;
    expect(step()).toBeUndefined();
    expect(scheduler.freeSlots).toBe(1);
  });

  test("a sequence that selects all rows gets at most 16 of them a step", () => {
    const { submit, step } = make({ chunk: 64, totalPages: 0 });
    submit({ length: 20, maxNewTokens: 0, select: "all" });
    expect(step()?.selected.length).toBe(16);
    expect(step()?.selected).toEqual([0, 1, 2, 3]);
  });

  test("a step ahead counts one row for every sequence", () => {
    const { scheduler, submit, step } = make();
    const a = submit({ length: 2 });
    step();
    const plan = step()!;
    scheduler.repeat(plan);
    expect([a.computed, a.place?.written]).toEqual([4, 4]);
  });
});

describe("conversations that are kept", () => {
  /** Runs a request to its end: n tokens, all 1. */
  function answer(setup: ReturnType<typeof make>, kept: Kept, ids: number[], n: number): Sequence {
    const sequence = setup.submit({ ids, maxNewTokens: n, kept });
    while (sequence.generated < n) setup.step();
    setup.scheduler.end(sequence);
    return sequence;
  }

  test("continue from the longest common prefix; the last prompt token is always computed", () => {
    const setup = make();
    const kept = setup.scheduler.keep();
    answer(setup, kept, [5, 6, 7], 2);
    expect(kept.ids).toEqual([5, 6, 7, 1]); // the last token was never fed
    expect(answer(setup, kept, [5, 6, 7, 1, 1, 9], 2).cached).toBe(4);
    expect(answer(setup, kept, [5, 6, 7, 1, 1, 9], 1).cached).toBe(5);
    expect(answer(setup, kept, [5, 6, 8, 1], 1).cached).toBe(2);
    expect(answer(setup, kept, [4, 6, 8, 1], 1).cached).toBe(0);
  });

  test("hold the pages of their tokens only", () => {
    const setup = make();
    const kept = setup.scheduler.keep();
    const a = setup.submit({ length: 5, maxNewTokens: 20, kept });
    setup.step();
    expect(setup.scheduler.freePages).toBe(3);
    setup.scheduler.end(a); // 5 positions computed
    expect([setup.scheduler.freePages, setup.scheduler.freeSlots, setup.scheduler.keptPlaces]).toEqual([8, 2, 1]);
    setup.scheduler.drop(kept);
    expect([setup.scheduler.freePages, setup.scheduler.freeSlots]).toEqual([10, 3]);
  });

  test("respect how far rings can be rolled back, counting what was written and dropped", () => {
    const setup = make({ rollbackLimit: 3 });
    const kept = setup.scheduler.keep();
    answer(setup, kept, [5, 6, 7, 8, 9], 3); // 7 positions written
    expect(answer(setup, kept, [5, 6, 7, 8, 2], 1).cached).toBe(4); // back by 3; 5 positions now, but 7 were written
    expect(answer(setup, kept, [5, 6, 7, 4], 1).cached).toBe(0); // back by 4
    expect(answer(setup, kept, [5, 6, 3], 1).cached).toBe(2); // rewritten from 0 on: 4 were written
  });

  test("serve one request at a time", () => {
    const { scheduler, submit } = make();
    const kept = scheduler.keep();
    const a = submit({ kept });
    expect(() => submit({ kept })).toThrow(expect.objectContaining({ code: "INPUT_CACHE_BUSY" }));
    scheduler.end(a);
    expect(() => submit({ kept })).not.toThrow();
  });

  test("give way to requests, the one used longest ago first", () => {
    const setup = make({ slots: 2 });
    const [old, young] = [setup.scheduler.keep(), setup.scheduler.keep()];
    answer(setup, old, [1, 2], 1);
    answer(setup, young, [3, 4], 1);
    expect(setup.scheduler.freeSlots).toBe(0);
    const a = setup.submit();
    expect(setup.scheduler.admit()).toEqual([a]);
    expect([old.place, old.ids, young.place !== undefined]).toEqual([undefined, [], true]);
    expect(answer(setup, young, [3, 4, 5], 1).cached).toBe(2);
  });

  test("are not given up for a request that would not fit even so", () => {
    const setup = make();
    const kept = setup.scheduler.keep();
    answer(setup, kept, [1, 2], 1);
    setup.submit({ length: 20, maxNewTokens: 12 }); // 8 pages
    setup.scheduler.admit();
    setup.submit({ length: 8, maxNewTokens: 4 }); // 3 pages, 1 is free, 1 is kept
    expect(setup.scheduler.admit()).toEqual([]);
    expect(kept.place).toBeDefined();
  });

  test("give way even while their own next request waits further back in the queue", () => {
    const setup = make();
    const kept = setup.scheduler.keep();
    answer(
      setup,
      kept,
      Array.from({ length: 12 }, () => 2),
      1,
    );
    const big = setup.submit({ length: 28, maxNewTokens: 4 });
    const own = setup.submit({ ids: Array.from({ length: 13 }, () => 2), maxNewTokens: 4, kept });
    expect(setup.scheduler.admit()).toEqual([big]);
    setup.scheduler.end(big);
    expect(setup.scheduler.admit()).toEqual([own]);
    expect(own.cached).toBe(0);
  });

  test("that are dropped while in use are freed when the request ends", () => {
    const { scheduler, submit, step } = make();
    const kept = scheduler.keep();
    const a = submit({ kept });
    step();
    scheduler.drop(kept);
    expect(a.state).toBe("running");
    scheduler.end(a);
    expect([scheduler.freePages, scheduler.freeSlots, scheduler.keptPlaces]).toEqual([10, 3, 0]);
  });
});

test("no page is lost or shared in 5,000 random events", () => {
  const { scheduler, submit } = make({ slots: 4, maxQueue: 6 });
  const kept: Kept[] = [];
  const live: Sequence[] = [];
  let draws = 0;
  const below = (n: number) => Math.floor(uniform(11, draws++) * n);
  for (let event = 0; event < 5000; event++) {
    switch (below(6)) {
      case 0:
        if (kept.length < 5) kept.push(scheduler.keep());
        else scheduler.drop(kept.splice(below(kept.length), 1)[0]);
        break;
      case 1:
        if (live.length > 0) scheduler.end(live.splice(below(live.length), 1)[0]);
        break;
      case 2:
      case 3: {
        const own = below(2) === 0 ? kept[below(kept.length)] : undefined;
        const ids = Array.from({ length: 1 + below(16) }, () => below(2));
        if (own?.user === undefined && scheduler.queued < 6)
          live.push(submit({ ids, maxNewTokens: 1 + below(16), kept: own }));
        break;
      }
      default: {
        scheduler.admit();
        for (const owner of scheduler.plan()?.owners ?? []) {
          owner.accept(below(2));
          if (owner.generated < owner.maxNewTokens) continue;
          scheduler.end(owner);
          live.splice(live.indexOf(owner), 1);
        }
      }
    }
    const places = [...scheduler.running, ...kept].flatMap(({ place }) => place ?? []);
    const pages = places.flatMap((place) => place.pages);
    expect(new Set(pages).size).toBe(pages.length);
    expect(new Set(places.map(({ slot }) => slot)).size).toBe(places.length);
    expect(pages.length + scheduler.freePages).toBe(LIMITS.totalPages);
    expect(places.length + scheduler.freeSlots).toBe(4);
  }
  for (const sequence of live) scheduler.end(sequence);
  for (const one of kept) scheduler.drop(one);
  expect([scheduler.freePages, scheduler.freeSlots, scheduler.queued]).toEqual([10, 4, 0]);
});
