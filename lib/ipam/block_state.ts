/**
 * What a node remembers of the blocks that it owns: one file beside the leases, written whole and onto the disk before
 * anything is done that rests on it. Whoever changes it holds the lock of the lease folder.
 *
 * @module
 */
import { CniError, code } from "../cni/error.ts";
import { systemWords } from "../kernel/regular_file.ts";
import { removeDrafts, replaceFile } from "../kernel/state_file.ts";
import { formatPrefix, parsePrefix, type Prefix } from "../net/cidr.ts";

/**
 * `taking`: about to be asked for; whether the record was made is not known yet. `own`: its addresses may be given out.
 * `returning`: none of its addresses are given out any more, the record is about to be removed. `lost`: another node's
 * record stands there.
 */
export type BlockPhase = "taking" | "own" | "returning" | "lost";

/** One block of this node. */
export interface OwnBlock {
  readonly block: Prefix;
  readonly phase: BlockPhase;
  /** Of the record, as far as it is known; "" before. */
  readonly revision: string;
  /** The record's text as this node wrote it. */
  readonly value: string;
  /** The node that holds it instead, where it is lost. */
  readonly holder?: string | undefined;
}

/** The whole file. */
export interface BlockState {
  readonly blocks: readonly OwnBlock[];
  /** Highest revision of the store that was seen: a lower one means that a backup was restored. */
  readonly revision: string;
  /** The boot in which the store last confirmed every block. */
  readonly bootId: string;
  /** When addresses were released, in milliseconds since 1970: the file is read at every ADD, so this is a number. */
  readonly freed: Readonly<Record<string, number>>;
  /** Instant of the last attempt to reach the store that failed, in milliseconds; 0 when the last one succeeded. */
  readonly failed: number;
}

const EMPTY: BlockState = { blocks: [], revision: "0", bootId: "", freed: {}, failed: 0 };

/** Largest file that is read, in bytes: far above what 4,096 blocks take. */
const LARGEST = 64 * 1024 * 1024;

/**
 * Reads the file; where there is none, nothing is owned.
 *
 * @throws {CniError} code 5 when it is there and not readable: to start anew would give addresses out twice
 */
export function readBlocks(path: string): BlockState {
  let text: string;
  try {
    const info = Deno.lstatSync(path);
    if (!info.isFile || info.size > LARGEST) {
      throw new CniError(
        code.io,
        `${path} is not a file of cnibox`,
        "move it away; `cnibox cluster check` finds what this node owns",
      );
    }
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return EMPTY;
    if (error instanceof CniError) throw error;
    throw new CniError(code.io, `failed to read ${path}: ${systemWords(error)}`, "");
  }
  try {
    const { blocks, ...rest } = JSON.parse(text);
    return {
      ...EMPTY,
      ...rest,
      blocks: blocks.map((one: Omit<OwnBlock, "block"> & { block: string }) => {
        const block = parsePrefix(one.block);
        if (block === undefined) throw new SyntaxError(one.block);
        return { ...one, block };
      }),
    };
  } catch {
    throw new CniError(
      code.io,
      `${path} is damaged`,
      "move it away; the next ADD finds what this node owns by its records, and addresses in use by their leases",
    );
  }
}

/**
 * Writes the file whole and onto the disk.
 *
 * @throws {CniError} code 5 when that fails
 */
export function writeBlocks(path: string, { blocks, ...rest }: BlockState): void {
  const text = JSON.stringify({
    version: 1,
    ...rest,
    blocks: blocks.map(({ block, ...one }) => ({ block: formatPrefix(block), ...one })),
  });
  try {
    // The lock is ours: whoever began one of these was killed.
    removeDrafts(path);
    replaceFile(path, `${text}\n`);
  } catch (error) {
    throw new CniError(code.io, `failed to write ${path}: ${systemWords(error)}`, "");
  }
}

/** The state with one block replaced, added or, where `change` is undefined, removed. */
export function withBlock(state: BlockState, block: Prefix, change: Omit<OwnBlock, "block"> | undefined): BlockState {
  const text = formatPrefix(block);
  const others = state.blocks.filter((one) => formatPrefix(one.block) !== text);
  return { ...state, blocks: change === undefined ? others : [...others, { block, ...change }] };
}
