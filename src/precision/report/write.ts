// Gathers what a report says about the world around a diff (machine, versions, config, tokenizer, noise floor), and writes the
// file. Node only.
import { writeFile } from "node:fs/promises";
import { arch, cpus, release, totalmem, type } from "node:os";
import { basename, resolve } from "node:path";
import type { ModelFiles } from "../../../weights/files.ts";
import { ModelFileError, OptionError } from "../../errors.ts";
import { loadTokenizer } from "../../text/tokenizer.ts";
import { compareConfigs } from "../config-diff.ts";
import type { DiffReport } from "../diff.ts";
import { floorBeside } from "../floor.ts";
import type { Reference } from "../reference.ts";
import type { Session } from "../session.ts";
import type { Collector } from "./collect.ts";
import { type Context, reportData } from "./data.ts";
import { reportPage } from "./page.ts";

export interface Subject {
  /** Folder of the checkpoint, or GGUF file, and what is in it. */
  readonly model: string;
  readonly files: ModelFiles;
  /** Base name of the dump, or the device that stood in for it. */
  readonly reference?: string;
  readonly other?: string;
  readonly fusion: "on" | "off";
  readonly forceRouting: boolean;
  readonly version: string;
  readonly explanations: readonly string[];
}

/** Throws OptionError when the file cannot be written. */
export async function writeReport(
  file: string,
  report: DiffReport,
  collector: Collector,
  { manifest }: Reference,
  { runner, device, threads, configJson }: Session,
  subject: Subject,
): Promise<void> {
  const { model, files, reference, other, fusion, forceRouting, version, explanations } = subject;
  const { producer = {} } = manifest;
  const side = (name: string, theirs: unknown, mine: string) => {
    return theirs === undefined ? [] : [{ name, reference: String(theirs), here: mine, same: String(theirs) === mine }];
  };
  const processor = cpus();
  const data = reportData(report, collector.finish(), {
    // Names without their folders: people attach reports to bug reports.
    model: basename(resolve(model)),
    device,
    against: reference === undefined ? `device ${other}` : `PyTorch dump ${basename(reference)}`,
    created: `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`,
    ids: manifest.ids,
    promptLength: manifest.prompt_len,
    textOf: await texts(files, runner.vocabSize),
    floor: reference === undefined ? undefined : await floorBeside(reference),
    config: compareConfigs(manifest.config, configJson),
    sides: [
      ...side("model_type", manifest.model_type, runner.config.modelType),
      ...side("vocabulary", vocabularyOf(manifest.tensors), String(runner.vocabSize)),
    ],
    environment: {
      vernier: version,
      device: `${device}: ${runner.backend.caps.description}`,
      threads: threads === undefined ? "default" : String(threads),
      fusion,
      routing: forceRouting ? "the reference's" : "own",
      "compute class": report.computeClass,
      node: process.version,
      system: `${type()} ${release()} ${arch()}`,
      processor: `${processor.length} × ${processor[0]?.model.trim() ?? "unknown"}, ${(totalmem() / 2 ** 30).toFixed(1)} GiB`,
      ...Object.fromEntries(Object.entries(producer).map(([name, value]) => [`reference ${name}`, String(value)])),
    },
    explanations,
  } satisfies Context);
  try {
    await writeFile(file, reportPage(data));
  } catch (cause) {
    const message = `--html: ${file} cannot be written (${(cause as NodeJS.ErrnoException).code})`;
    throw new OptionError("OPTION_RANGE", message, { field: "--html", actual: file, cause });
  }
}

function vocabularyOf(tensors: Reference["manifest"]["tensors"]): number | undefined {
  return tensors["0/:logits"]?.shape.at(-1);
}

/** Texts of tokens one by one, when the model has a tokenizer that can be read: a report does not depend on it. */
async function texts(files: ModelFiles, vocabSize: number): Promise<Context["textOf"]> {
  try {
    const tokenizer = await loadTokenizer(files, { vocabSize });
    return (id) => {
      const name = tokenizer.tokenOf(id);
      // Some decoders drop the space of a text's first token, hence the second one. Bytes of a character that takes several
      // tokens have no text of their own.
      const text = name === undefined ? undefined : tokenizer.decode([id, id]).slice(tokenizer.decode([id]).length);
      return text === undefined || text === "" || text.includes("\ufffd") ? name : text;
    };
  } catch (error) {
    if (error instanceof ModelFileError) return undefined;
    throw error;
  }
}
