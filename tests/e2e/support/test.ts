/** Registers tests on throw-away nodes: skips with a reason in the name, cleans up whatever happens. */
import { binDir, type By } from "./plugins.ts";
import { cniboxDir, referenceDir } from "./bin.ts";
import { createNode, type Node, type NodeOptions } from "./node.ts";
import { inCiSet } from "../../vm/ci_set.ts";
import { type Need, unmet } from "./needs.ts";
import { inVm } from "./vm.ts";

export interface NodeTest {
  node: Node;
  step: Deno.TestContext["step"];
}

export interface NodeTestOptions extends NodeOptions {
  needs?: Need[];
  /** Registers the test with Deno.test.only. */
  only?: boolean;
}

type NodeTestBody = (test: NodeTest) => Promise<void> | void;

/**
 * A test on a node of its own, whose /opt/cni/bin holds ours and /opt/cni/ref the reference's plugins (where there are
 * any). Name it by subject and promise. It is skipped, with the reason in its name, when this machine lacks what it
 * needs.
 */
export function nodeTest(name: string, options: NodeTestOptions, body: NodeTestBody): void;
export function nodeTest(name: string, body: NodeTestBody): void;
export function nodeTest(name: string, first: NodeTestOptions | NodeTestBody, second?: NodeTestBody): void {
  const options = typeof first === "function" ? {} : first;
  const body = typeof first === "function" ? first : second;
  if (!body) throw new TypeError(`nodeTest "${name}" has no body`);
  register(name, { needs: options.needs ?? [], only: options.only ?? false }, async ({ step }) => {
    await using node = await testNode(options);
    await body({ node, step });
  });
}

/**
 * A test that is skipped, with the reason in its name, when this machine lacks what it needs, and left out where the
 * virtual machine runs CI's set and that does not hold it.
 */
export function register(
  name: string,
  { needs, only = false }: { readonly needs: readonly Need[]; readonly only?: boolean },
  fn: Deno.TestDefinition["fn"],
): void {
  if (Deno.env.get("CNIBOX_E2E_VM") === "ci" && !inCiSet(name, needs)) return;
  const missing = unmet(needs);
  const definition: Deno.TestDefinition = {
    name: missing.length > 0 ? `${name} [skipped: ${missing.join("; ")}]` : name,
    ignore: missing.length > 0,
    fn,
  };
  if (only) definition.only = true;
  Deno.test(definition);
}

/** A node with both plugin folders in place, for what `nodeTest` does not fit. Close it. */
export function testNode(options: NodeOptions = {}): Promise<Node> {
  const binds: Record<string, string> = { [binDir.cnibox]: cniboxDir() };
  const reference = referenceDir();
  if (reference !== undefined) binds[binDir.ref] = reference;
  return createNode({ ...options, binds: { ...binds, ...options.binds } });
}

export type Cell = { adder: By; checker: By; deleter: By };

/** Outcomes by scenario, in the order of `cells`. */
const matrix = new Map<string, Map<string, string>>();

const both: By[] = ["ref", "cnibox"];
const cells: Cell[] = both.flatMap((adder) =>
  both.flatMap((checker) => both.map((deleter) => ({ adder, checker, deleter })))
);

/**
 * One test for each of the eight ways in which ours and the reference can share an attachment: who adds, who checks,
 * who deletes. The cell where the reference does all is a control: where the reference itself fails there, the matrix
 * says so, and the test does not fail for that. The matrix is printed when the file's tests are done.
 */
export function interopTest(
  name: string,
  options: NodeTestOptions,
  scenario: (cell: Cell, node: Node) => Promise<void>,
): void {
  const needs: Need[] = ["reference", ...(options.needs ?? [])];
  for (const cell of cells) {
    const { adder, checker, deleter } = cell;
    nodeTest(
      `${name}: ${adder} adds, ${checker} checks, ${deleter} deletes`,
      { ...options, needs },
      async ({ node }) => {
        const control = adder === "ref" && checker === "ref" && deleter === "ref";
        try {
          await scenario(cell, node);
          record(name, cell, "pass");
        } catch (error) {
          record(name, cell, control ? "fails" : "FAIL");
          if (!control) throw error;
          Deno.stdout.writeSync(new TextEncoder().encode(`the reference alone: ${error}\n`));
        }
      },
    );
  }
}

function record(name: string, cell: Cell, outcome: string): void {
  if (matrix.size === 0) addEventListener("unload", print);
  const row = matrix.get(name) ?? new Map<string, string>();
  matrix.set(name, row.set(keyOf(cell), outcome));
}

const keyOf = ({ adder, checker, deleter }: Cell) => `${adder}>${checker}>${deleter}`;

// Columns: who adds > checks > deletes; r is the reference, c cnibox.
function print(): void {
  const title = inVm ? "interop in the VM: add>check>delete" : "interop: add>check>delete";
  const width = Math.max(title.length, ...[...matrix.keys()].map((name) => name.length));
  const head = cells.map((cell) => keyOf(cell).replaceAll("cnibox", "c").replaceAll("ref", "r").padEnd(6));
  const lines = [`${title.padEnd(width)}  ${head.join(" ")}   (r = reference, c = cnibox)`];
  for (const [name, row] of matrix) {
    lines.push(`${name.padEnd(width)}  ${cells.map((cell) => (row.get(keyOf(cell)) ?? "-").padEnd(6)).join(" ")}`);
  }
  const text = lines.join("\n") + "\n";
  Deno.stdout.writeSync(new TextEncoder().encode("\n" + text));
  const report = Deno.env.get("CNIBOX_E2E_MATRIX");
  if (report) Deno.writeTextFileSync(report, text, { append: true });
}
