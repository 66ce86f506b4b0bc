/**
 * Unix stream sockets, for a program without network rights.
 *
 * Deno before 2.9 asks for read and write access to the socket's path, which this program has. Newer ones also want the
 * right to exactly that path from the day of compilation (`--allow-net=unix:PATH`), while here paths are configured. So
 * the program is granted one path, {@linkcode GATE}, whose folder is a symbolic link that is set to where the socket is,
 * under a lock, for as long as one `connect` or `bind` takes.
 *
 * @module
 */
/** One connection: bytes in the order they were sent. */
export interface Channel {
  /** What came in; null at the end. */
  read(): Promise<Uint8Array | null>;
  write(bytes: Uint8Array): Promise<void>;
  close(): void;
}

/** A socket that waits for connections. */
export interface Acceptor {
  /** The next connection; rejects when the socket was closed. */
  accept(): Promise<Channel>;
  close(): void;
}

/** Folder of what the newest runtimes need. */
const GATE_FOLDER = "/run/cni/.cnibox";
/** The one socket path that the program is compiled with the right to: see tools/build.ts. */
export const GATE = `${GATE_FOLDER}/gate/socket`;

/** A socket that cannot be reached or made; `reason` is the system's, as Go prints it. */
export class SocketError extends Error {
  override readonly name = "SocketError";
  constructor(readonly reason: string) {
    super(reason);
  }
}

/**
 * Connects to the socket at `path`.
 *
 * @throws {SocketError} when there is none, or nobody listens on it
 */
export async function connectUnix(path: string): Promise<Channel> {
  try {
    try {
      return channelOf(await Deno.connect({ transport: "unix", path }));
    } catch (error) {
      if (!needsGate(error)) throw error;
      return channelOf(
        await throughGate(async (folder) => {
          Deno.symlinkSync(absolute(path), `${folder}/socket`);
          return await Deno.connect({ transport: "unix", path: GATE });
        }),
      );
    }
  } catch (error) {
    throw new SocketError(systemText(error));
  }
}

/**
 * Listens at `path`: the socket (mode 0660) is made aside and renamed into place, so that it replaces a stale one and
 * appears ready. The caller makes sure that nobody listens there.
 *
 * @throws {SocketError} when it cannot be made
 */
export async function listenUnix(path: string): Promise<Acceptor> {
  // A short name: paths of sockets have a limit of 107 bytes, and this one is longer than the final one.
  const aside = Deno.makeTempDirSync({ dir: path.slice(0, path.lastIndexOf("/")) || "/", prefix: ".s" });
  let listener: Deno.UnixListener;
  try {
    const draft = `${aside}/socket`;
    try {
      listener = Deno.listen({ transport: "unix", path: draft });
    } catch (error) {
      if (!needsGate(error)) throw error;
      listener = await throughGate(() => Promise.resolve(Deno.listen({ transport: "unix", path: GATE })), aside);
    }
    try {
      Deno.chmodSync(draft, 0o660);
      Deno.renameSync(draft, path);
    } catch (error) {
      listener.close();
      throw error;
    }
  } catch (error) {
    throw new SocketError(systemText(error));
  } finally {
    Deno.removeSync(aside, { recursive: true });
  }
  return { accept: async () => channelOf(await listener.accept()), close: () => listener.close() };
}

/**
 * Takes a listening socket that was inherited as a file descriptor.
 *
 * @throws {SocketError} when the runtime cannot: Deno before 2.9
 */
export async function inheritedListener(fd: number): Promise<Acceptor> {
  const { createServer } = await import("node:net");
  const waiting: Channel[] = [];
  const wanted: { resolve: (channel: Channel) => void; reject: (error: Error) => void }[] = [];
  const server = createServer((socket) => {
    const channel = channelOfNode(socket);
    const next = wanted.shift();
    if (next) next.resolve(channel);
    else waiting.push(channel);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error) => reject(new SocketError(systemText(error))));
    server.listen({ fd }, resolve);
  });
  server.on("close", () => wanted.forEach((one) => one.reject(new SocketError("use of closed network connection"))));
  return {
    accept: () => {
      const channel = waiting.shift();
      if (channel) return Promise.resolve(channel);
      return new Promise((resolve, reject) => wanted.push({ resolve, reject }));
    },
    close: () => void server.close(),
  };
}

function channelOf(connection: Deno.Conn): Channel {
  const buffer = new Uint8Array(16 * 1024);
  return {
    read: async () => {
      const count = await connection.read(buffer);
      return count === null ? null : buffer.slice(0, count);
    },
    write: async (bytes) => {
      for (let rest = bytes; rest.length > 0;) rest = rest.subarray(await connection.write(rest));
    },
    close: () => {
      try {
        connection.close();
      } catch {
        // The other side was quicker.
      }
    },
  };
}

function channelOfNode(socket: import("node:net").Socket): Channel {
  const parts = socket[Symbol.asyncIterator]();
  return {
    read: async () => {
      const { value, done } = await parts.next();
      return done ? null : new Uint8Array(value);
    },
    write: (bytes) =>
      new Promise((resolve, reject) => socket.write(bytes, (error) => error ? reject(error) : resolve())),
    close: () => void socket.end(),
  };
}

/** Missing permission is its own error since Deno 2; the gate only helps against that of the network. */
function needsGate(error: unknown): boolean {
  return error instanceof Deno.errors.NotCapable;
}

/** Lets `work` use {@linkcode GATE} while its folder leads to `target`, or to a fresh folder that is removed again. */
async function throughGate<T>(work: (folder: string) => Promise<T>, target?: string): Promise<T> {
  Deno.mkdirSync(GATE_FOLDER, { recursive: true, mode: 0o700 });
  const lock = Deno.openSync(`${GATE_FOLDER}/lock`, { create: true, write: true, mode: 0o600 });
  const folder = target ?? Deno.makeTempDirSync({ dir: GATE_FOLDER });
  try {
    await lock.lock(true);
    const gate = GATE.slice(0, GATE.lastIndexOf("/"));
    // What a killed process left.
    if (exists(gate)) Deno.removeSync(gate);
    Deno.symlinkSync(folder, gate);
    try {
      return await work(folder);
    } finally {
      Deno.removeSync(gate);
    }
  } finally {
    lock.close();
    if (target === undefined) Deno.removeSync(folder, { recursive: true });
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** The system's words as Go prints them: `connection refused`. */
function systemText(error: unknown): string {
  return (error as Error).message.replace(/ \(os error .*$/s, "").toLowerCase();
}

function absolute(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}
