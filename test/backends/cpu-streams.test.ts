// How the cpu backend chooses between reading one tile after the other and several in turn: by what runs of a step took.
import { expect, test } from "vitest";
import { StreamChoice } from "../../backends/cpu/streams.ts";

/** Runs until it is settled, at most `most` times; a run takes `ms(streams, i)`. What was chosen, and after how many runs. */
function settle(ms: (streams: number, i: number) => number, program = (_: number) => 1, most = 200) {
  const choice = new StreamChoice();
  let i = 0;
  for (; choice.settled === undefined && i < most; i++) choice.took(ms(choice.next(program(i)), i));
  return { settled: choice.settled, runs: i };
}

test("the faster of both is chosen, one where they are equal", () => {
  expect(settle((streams) => (streams === 1 ? 30 : 25)).settled).toBe(4);
  expect(settle((streams) => (streams === 1 ? 30 : 31)).settled).toBe(1);
  expect(settle(() => 30).settled).toBe(1);
  // Steps get longer as the context grows; that is no reason.
  expect(settle((_, i) => 30 * 1.02 ** i).settled).toBe(1);
});

test("what the first runs take, while code is compiled, does not count", () => {
  expect(settle((streams, i) => (i < 16 ? 500 / (i + 1) : streams === 1 ? 30 : 25)).settled).toBe(4);
});

test("a minority of disturbed runs does not matter", () => {
  expect(settle((streams, i) => (i % 5 === 0 ? 90 : streams === 1 ? 30 : 25)).settled).toBe(4);
});

test("runs of other programs in between belong to no pair", () => {
  // Every third run is of another program, and slow.
  const { settled } = settle(
    (_, i) => (i % 3 === 2 ? 90 : 30),
    (i) => (i % 3 === 2 ? 2 : 1),
  );
  expect(settled).toBeUndefined();
  const later = settle(
    (streams, i) => (i < 60 && i % 3 === 2 ? 90 : streams === 1 ? 30 : 25),
    (i) => (i < 60 && i % 3 === 2 ? 2 : 1),
  );
  expect(later.settled).toBe(4);
});

test("steps that take less than a millisecond settle nothing", () => {
  expect(settle((streams) => (streams === 1 ? 0.4 : 0.2)).settled).toBeUndefined();
});

test("what is settled beforehand stays", () => {
  const choice = new StreamChoice(4);
  expect(choice.next(1)).toBe(4);
  choice.took(1000);
  expect(choice.next(2)).toBe(4);
});
