// A progress bar for loading, on stderr and only where a person can see it.
import type { LoadProgress } from "../options.ts";

const WIDTH = 28;

/** Draws at most ten times a second, and wipes itself at the end. */
export class ProgressBar {
  readonly #out: NodeJS.WriteStream;
  readonly #title: string;
  #drawn = 0;

  constructor(title: string, out: NodeJS.WriteStream = process.stderr) {
    this.#title = title;
    this.#out = out;
  }

  readonly update = ({ loadedBytes, totalBytes }: LoadProgress): void => {
    if (!this.#out.isTTY || Date.now() - this.#drawn < 100) return;
    this.#drawn = Date.now();
    const fraction = totalBytes === 0 ? 1 : loadedBytes / totalBytes;
    const filled = Math.round(fraction * WIDTH);
    const bar = "█".repeat(filled) + "░".repeat(WIDTH - filled);
    const amount = `${formatBytes(loadedBytes)} of ${formatBytes(totalBytes)}`;
    this.#out.write(`\r\x1b[2K${this.#title} ${bar} ${Math.floor(fraction * 100)} % (${amount})`);
  };

  end(): void {
    if (this.#drawn !== 0) this.#out.write("\r\x1b[2K");
    this.#drawn = 0;
  }
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${bytes.toFixed(unit === 0 || bytes >= 100 ? 0 : 1)} ${units[unit]}`;
}
