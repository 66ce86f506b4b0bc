import { assertRejects } from "@std/assert";
import { collectVeths, deleteHostVeth } from "../../lib/link/host_end.ts";
import { step } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { fakeCall } from "../fakes/call.ts";

const after = [step("host", "ip", "neigh del 10.22.0.5 dev cni0")];
const ends: [what: string, stderr: string, fails: boolean][] = [
  ["that it could not delete", "RTNETLINK answers: Operation not permitted\nCommand failed -:1\n", true],
  ["that is not there", 'Cannot find device "veth1"\nCommand failed -:1\n', false],
  ["that it deleted, before a later line failed", "RTNETLINK answers: Invalid argument\nCommand failed -:2\n", false],
  ["of which it says nothing", "something went wrong\n", true],
  ["that it was killed over", "", true],
];

for (const [what, stderr, fails] of ends) {
  Deno.test(`a tool's failure about a link ${what} is ${fails ? "one" : "none"}`, async () => {
    const host: Run = () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr });
    const work = () => deleteHostVeth(fakeCall({}, { verb: "DEL", host }), "veth1", after);
    if (fails) await assertRejects(work);
    else await work();
  });
}

Deno.test("GC does not take a failed listing for a node without links", async () => {
  const host: Run = () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr: "something went wrong\n" });
  await assertRejects(
    () => collectVeths(fakeCall({}, { verb: "GC", host }), "net1", []),
    Error,
    "something went wrong",
  );
});
