/**
 * `deno task test`: every test, in two runs of `deno test`. First the unit tests and those of build and installer, one
 * file after the other, since some change the process's environment or need a processor for themselves; then the tests
 * with namespaces of their own, one file more at once than there are processors, since what they call is often waited
 * for. Arguments go to both runs, for example `--filter bridge`; with files among them there is one run of those.
 */
import { fromFileUrl } from "@std/path";

const root = fromFileUrl(new URL("..", import.meta.url));

/** Folders whose tests share nothing but the build. */
const ISOLATED = ["chaos", "e2e", "faults", "fuzz", "load", "pains"].map((folder) => `tests/${folder}`);

const options = ["test", "-A", "--no-check"];
const named = Deno.args.some((arg) => arg.startsWith("tests/"));
const runs = named ? [[...options, ...Deno.args]] : [
  [...options, ...Deno.args, `--ignore=${ISOLATED.join(",")}`, "tests/"],
  [...options, ...Deno.args, "--parallel", ...ISOLATED],
];

/** How many files run at once with `--parallel`. */
const env = { DENO_JOBS: Deno.env.get("DENO_JOBS") ?? `${navigator.hardwareConcurrency + 1}` };

let failed = false;
for (const args of runs) {
  const { success } = await new Deno.Command(Deno.execPath(), { args, cwd: root, env }).spawn().status;
  failed ||= !success;
}
Deno.exit(failed ? 1 : 0);
