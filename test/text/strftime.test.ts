import { expect, it } from "vitest";
import { strftime } from "../../src/text/strftime.ts";

const date = new Date(2025, 6, 6, 13, 5, 9, 42);

it("writes dates as Python does", () => {
  expect(strftime(date, "%d %b %Y|%Y-%m-%d|%A %B %e|%I:%M:%S %p|%-d/%-m/%y")).toBe(
    "06 Jul 2025|2025-07-06|Sunday July  6|01:05:09 PM|6/7/25",
  );
  expect(strftime(date, "%j %w %u %f %H %R %D %F %T %a %h")).toBe(
    "187 0 7 042000 13 13:05 07/06/25 2025-07-06 13:05:09 Sun Jul",
  );
  expect(strftime(date, "%c|%x|%X|100%%|%Q")).toBe("Sun Jul  6 13:05:09 2025|07/06/25|13:05:09|100%|%Q");
  expect(strftime(new Date(2024, 11, 31, 0, 30), "%j %I %p")).toBe("366 12 AM");
  expect(Number(strftime(date, "%s"))).toBe(Math.floor(date.getTime() / 1000));
  expect(strftime(date, "%z")).toMatch(/^[+-]\d{4}$/);
});
