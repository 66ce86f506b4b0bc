/** nftables, spoken to in whole transactions: commands for `nft -f -` in, JSON listings out. */
import { CommandError, missingTool, type Output, type Run, toolPath } from "./run.ts";
import { nftText, says } from "./tool_words.ts";

/** `missing`: no nft on this machine. `absent`: what was named is not there. `refused`: anything else. */
export type NftRefusal = "missing" | "absent" | "refused";

/** nft could not do its work, and nothing of it was done. */
export class NftError extends CommandError {
  constructor(readonly refusal: NftRefusal, command: CommandError["command"], output: Output, message: string) {
    super(command, output, message);
  }
}

/** A rule as `nft -j list` prints it. */
export interface NftRule {
  readonly family: string;
  readonly table: string;
  readonly chain: string;
  readonly handle: number;
  readonly comment?: string;
  readonly expr: readonly unknown[];
}

/** A chain as `nft -j list` prints it; the last four only for base chains. */
export interface NftChain {
  readonly family: string;
  readonly table: string;
  readonly name: string;
  readonly type?: string;
  readonly hook?: string;
  readonly prio?: number;
  readonly policy?: string;
}

/** A set as `nft -j list` prints it. */
export interface NftSet {
  readonly table: string;
  readonly name: string;
  readonly elem?: readonly unknown[];
}

/** What a listing holds. */
export interface NftListing {
  readonly chains: readonly NftChain[];
  readonly rules: readonly NftRule[];
  readonly sets: readonly NftSet[];
}

/** Elements of a set: what each stands for, and its comment. */
export function setElements({ elem = [] }: NftSet): { readonly value: unknown; readonly comment: string }[] {
  return elem.map((one) => {
    const inner = typeof one === "object" && one !== null
      ? (one as { elem?: { val?: unknown; comment?: string } }).elem
      : undefined;
    return inner ? { value: inner.val, comment: inner.comment ?? "" } : { value: one, comment: "" };
  });
}

/** Does the whole of a transaction, or nothing, and returns what it printed. Throws {@linkcode NftError}. */
export async function nft(run: Run, text: string, options: readonly string[] = []): Promise<string> {
  return await checked(run, ["nft", ...options, "-f", "-"], text);
}

/**
 * A table, a chain or all chains (`table inet NAME`, `chain ip NAME CHAIN`, `chains`) as they are now; undefined when
 * it is not there, or nft is not.
 */
export async function nftList(run: Run, what: string): Promise<NftListing | undefined> {
  try {
    return parseListing(await checked(run, ["nft", "-j", "list", ...what.split(" ")]));
  } catch (error) {
    if (error instanceof NftError && error.refusal !== "refused") return undefined;
    throw error;
  }
}

/** Reads nft's JSON. */
export function parseListing(text: string): NftListing {
  const chains: NftChain[] = [];
  const rules: NftRule[] = [];
  const sets: NftSet[] = [];
  const { nftables = [] } = JSON.parse(text) as { nftables?: Record<string, unknown>[] };
  for (const { chain, rule, set } of nftables) {
    if (chain) chains.push(chain as NftChain);
    if (rule) rules.push(rule as NftRule);
    if (set) sets.push(set as NftSet);
  }
  return { chains, rules, sets };
}

/** A comment in the language's quoting; nft has no way to write a double quote or a line break in one. */
export function nftComment(text: string): string {
  // deno-lint-ignore no-control-regex
  if (/["\x00-\x1f]/.test(text)) throw new RangeError(`nft takes no such comment: ${JSON.stringify(text)}`);
  return `comment "${text}"`;
}

/** The reference's own test: version 1.0.1 or later, and a dry run of a new table succeeds. */
export async function nftUsable(run: Run): Promise<boolean> {
  if (toolPath("nft") === "") return false;
  try {
    const { code, stdout } = await run({ argv: ["nft", "--version"] });
    if (code !== 0 || /^nftables v(0\.|1\.0\.0 )/.test(stdout)) return false;
    const dry = await run({ argv: ["nft", "--check", "-f", "-"], input: ["add table ip cni_test\n"] });
    return dry.code === 0;
  } catch {
    return false;
  }
}

async function checked(run: Run, argv: readonly string[], input?: string): Promise<string> {
  const command = { argv, ...(input !== undefined && { input: [input] }) };
  if (toolPath("nft") === "") {
    const output = { code: -1, signal: null, stdout: "", stderr: missingTool("nft") };
    throw new NftError("missing", command, output, `could not find nftables binary: ${output.stderr}`);
  }
  const output = await run(command);
  if (output.code === 0) return output.stdout;
  const refusal = says(output, "nftAbsent") ? "absent" : "refused";
  throw new NftError(refusal, command, output, `failed to run nft: ${nftText(output)}`);
}
