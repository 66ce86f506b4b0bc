/**
 * Unix stream sockets, for a program without network rights. The runtime asks for read and write access to the socket's
 * path, which this program has.
 *
 * @module
 */
import { systemWords } from "./regular_file.ts";

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
    return channelOf(await Deno.connect({ transport: "unix", path }));
  } catch (error) {
    throw new SocketError(systemWords(error));
  }
}

/**
 * Listens at `path`: the socket (mode 0660) is made aside and renamed into place, so that it replaces a stale one and
 * appears ready. The caller makes sure that nobody listens there.
 *
 * @throws {SocketError} when it cannot be made
 */
export function listenUnix(path: string): Acceptor {
  // A short name: paths of sockets have a limit of 107 bytes, and this one is longer than the final one.
  const aside = Deno.makeTempDirSync({ dir: path.slice(0, path.lastIndexOf("/")) || "/", prefix: ".s" });
  let listener: Deno.UnixListener;
  try {
    const draft = `${aside}/socket`;
    listener = Deno.listen({ transport: "unix", path: draft });
    try {
      Deno.chmodSync(draft, 0o660);
      Deno.renameSync(draft, path);
    } catch (error) {
      listener.close();
      throw error;
    }
  } catch (error) {
    throw new SocketError(systemWords(error));
  } finally {
    Deno.removeSync(aside, { recursive: true });
  }
  return { accept: async () => channelOf(await listener.accept()), close: () => listener.close() };
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
