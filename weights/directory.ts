// The files of a model in a folder (Node only). Reads go into buffers of our own: a mapped file that shrinks kills the
// process, a read of it is an error. Knows nothing of what the files contain.
import { constants, fstatSync, statSync } from "node:fs";
import { type FileHandle, lstat, open, readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, sep } from "node:path";
import { ModelFileError, quote, VernierError } from "../src/errors.ts";
import { destination, type ModelFile, type ModelFiles, requirePlainName, requireRange } from "./files.ts";

/** One read call takes less than 2^31 bytes on every system. */
const READ_LIMIT = 2 ** 30;

/** Read only; never wait for a pipe's writer; never follow a link that took the place of a checked file. */
const FLAGS = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0) | (constants.O_NOFOLLOW ?? 0);

/**
 * A model's folder: a plain one or a revision of the hub's cache (`snapshots/<revision>`, whose links into the
 * repository's own `blobs` are followed; no other link out of the folder is).
 * Throws ModelFileError FILE_MISSING, FILE_ACCESS, FILE_KIND.
 */
export async function openDirectory(path: string): Promise<ModelFiles> {
  let root: string;
  try {
    root = await realpath(path);
    if (!(await stat(root)).isDirectory())
      throw notRegular(path, "is not a folder: give the folder with config.json in it");
  } catch (error) {
    throw typed(path, error);
  }
  const roots = [root];
  if (basename(dirname(root)) === "snapshots") roots.push(join(dirname(dirname(root)), "blobs"));

  /** The file itself, after all links; refuses links that leave the model. */
  async function resolve(name: string): Promise<string> {
    requirePlainName(name);
    const link = join(root, name);
    if (!(await lstat(link)).isSymbolicLink()) return link;
    const target = await realpath(link);
    if (roots.some((allowed) => target.startsWith(allowed + sep))) return target;
    throw new ModelFileError("FILE_NAME", `${quote(name)} is a link to ${quote(target)}, outside the model's folder`, {
      file: name,
    });
  }

  return {
    label: path,

    async has(name) {
      requirePlainName(name);
      try {
        await lstat(join(root, name));
        return true;
      } catch (error) {
        const failure = typed(name, error);
        if (failure instanceof ModelFileError && failure.code === "FILE_MISSING") return false;
        throw failure;
      }
    },

    async open(name) {
      let handle: FileHandle | undefined;
      try {
        const target = await resolve(name);
        handle = await open(target, FLAGS);
        return await openFile(name, target, handle);
      } catch (error) {
        await handle?.close();
        throw typed(name, error);
      }
    },

    async list() {
      try {
        return await readdir(root);
      } catch (error) {
        throw typed(path, error);
      }
    },
  };
}

async function openFile(name: string, path: string, handle: FileHandle): Promise<ModelFile> {
  const first = await handle.stat({ bigint: true });
  if (!first.isFile()) throw notRegular(name, "is not a regular file");

  /**
   * The open file must still have its size and date, and its path must still lead to it. Asked after every read, and
   * without waiting: the answer takes 5 µs, a detour over the thread pool seven times as much.
   */
  function requireUnchanged(): void {
    const now = fstatSync(handle.fd, { bigint: true });
    const there = statSync(path, { bigint: true, throwIfNoEntry: false });
    const same = now.size === first.size && now.mtimeNs === first.mtimeNs;
    if (same && there !== undefined && there.ino === first.ino && there.dev === first.dev) return;
    const message = `${quote(name)} was changed, replaced or removed while it was open; load the model again`;
    throw new ModelFileError("FILE_CHANGED", message, { file: name, limit: first.size, actual: now.size });
  }

  const file: ModelFile = {
    name,
    size: Number(first.size),

    async read(byteOffset, byteLength, into) {
      requireRange(file, byteOffset, byteLength);
      const bytes = destination(byteLength, name, into);
      try {
        for (let done = 0; done < byteLength; ) {
          const want = Math.min(byteLength - done, READ_LIMIT);
          const { bytesRead } = await handle.read(bytes, done, want, byteOffset + done);
          if (bytesRead === 0) break; // the file has shrunk, which requireUnchanged says
          done += bytesRead;
        }
        requireUnchanged();
      } catch (error) {
        throw typed(name, error);
      }
      return bytes;
    },

    close: () => handle.close(),
  };
  return file;
}

function notRegular(name: string, message: string): ModelFileError {
  return new ModelFileError("FILE_KIND", `${quote(name)} ${message}`, { file: name });
}

/** What each error of the system means for a user. */
const SYSTEM_ERRORS: Readonly<Record<string, readonly [code: string, message: string]>> = {
  ENOENT: ["FILE_MISSING", "there is no such file"],
  ENOTDIR: ["FILE_MISSING", "there is no such file"],
  EACCES: ["FILE_ACCESS", "reading it is not permitted"],
  EPERM: ["FILE_ACCESS", "reading it is not permitted"],
  EMFILE: ["FILE_LIMIT", "too many files are open in this process; raise the limit (ulimit -n) or close some"],
  ENFILE: ["FILE_LIMIT", "too many files are open on this machine; close some"],
  ERR_INVALID_ARG_VALUE: ["FILE_MISSING", "there can be no such file"],
  ELOOP: ["FILE_NAME", "its link leads nowhere"],
  EISDIR: ["FILE_KIND", "it is a folder, not a regular file"],
};

function typed(name: string, error: unknown): unknown {
  if (error instanceof VernierError || !(error instanceof Error) || !("code" in error)) return error;
  const [code, message] = SYSTEM_ERRORS[String(error.code)] ?? ["FILE_READ", `reading failed (${String(error.code)})`];
  return new ModelFileError(code, `${quote(name)}: ${message}`, { file: name, cause: error });
}
