/** Runs fuzz cases inside a node of their own: settings and files that a case reaches are the node's. */
import { fromFileUrl } from "@std/path";
import { testNode } from "../e2e/support/mod.ts";
import type { Violation } from "./fuzz.ts";

/** What came back from inside. */
export interface Report {
  readonly cases: number;
  readonly results: number;
  readonly errors: Record<string, number>;
  readonly violations: Violation[];
  readonly seconds: number;
}

/** Runs `cases` cases of a seed, starting with number `from`. */
export async function fuzzInNode(cases: number, options: { seed: number; from?: number }): Promise<Report> {
  await using node = await testNode();
  // A namespace to be told of; the kernel behind it is made up.
  await node.container("pod");
  const script = fromFileUrl(new URL("inside.ts", import.meta.url));
  const config = fromFileUrl(new URL("../../deno.json", import.meta.url));
  const argv = [
    Deno.execPath(),
    "run",
    "-A",
    "--no-check",
    "--cached-only",
    "--config",
    config,
    script,
    "--cases",
    String(cases),
    "--seed",
    String(options.seed),
    "--from",
    String(options.from ?? 0),
  ];
  const env = {
    PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
    HOME: Deno.env.get("HOME") ?? "/root",
    NO_COLOR: "1",
    ...(Deno.env.get("DENO_DIR") && { DENO_DIR: Deno.env.get("DENO_DIR") ?? "" }),
  };
  const { code, stdout, stderr } = await node.exec(argv, { env, timeout: 3_600_000 });
  if (code !== 0) throw new Error(`fuzzing ended with ${code}: ${stderr.slice(-2000)}`);
  return JSON.parse(stdout.trim().split("\n").at(-1) ?? "{}");
}
