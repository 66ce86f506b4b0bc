import { assertEquals, assertRejects } from "@std/assert";
import { deleteUdpFlows, parseFlows, udpFlows } from "../../lib/kernel/conntrack.ts";
import { CommandError, type Output, type Run } from "../../lib/kernel/run.ts";

function answering(output: Partial<Output>): Run & { lines: string[] } {
  const lines: string[] = [];
  const run: Run = ({ argv }) => {
    lines.push(argv.join(" "));
    return Promise.resolve({ code: 0, signal: null, stdout: "", stderr: "", ...output });
  };
  return Object.assign(run, { lines });
}

Deno.test("flows are read with and without counters, answered or not", () => {
  const text =
    `udp      17 28 src=192.0.2.2 dst=192.0.2.1 sport=4000 dport=5353 [UNREPLIED] src=10.22.0.5 dst=192.0.2.2 sport=53 dport=4000 mark=0 use=1
udp      17 118 src=2001:db8::2 dst=2001:db8::1 sport=4000 dport=53 packets=2 bytes=80 src=2001:db8::1 dst=2001:db8::2 sport=53 dport=4000 packets=2 bytes=90 [ASSURED] mark=0 use=1

what is this
`;
  assertEquals(parseFlows(text), [
    { destination: "192.0.2.1", port: 5353, replySource: "10.22.0.5" },
    { destination: "2001:db8::1", port: 53, replySource: "2001:db8::1" },
  ]);
});

Deno.test("no flow at all is success, whatever the exit status", async () => {
  const none = { code: 1, stderr: "conntrack v1.4.7 (conntrack-tools): 0 flow entries have been deleted.\n" };
  await deleteUdpFlows(answering(none), 4, { port: 53 });
  assertEquals(
    await udpFlows(answering({ ...none, stderr: "conntrack v1.4.6: 0 flow entries have been shown.\n" }), 4, {
      port: 53,
    }),
    [],
  );
  await assertRejects(
    () => deleteUdpFlows(answering({ code: 1, stderr: "Operation failed: denied\n" }), 4, { port: 53 }),
    CommandError,
    "denied",
  );
});

Deno.test("a deletion names all it is given", async () => {
  const run = answering({});
  await deleteUdpFlows(run, 6, { port: 53, destination: "2001:db8::1" });
  await deleteUdpFlows(run, 4, { port: 53, replySource: "10.22.0.5" });
  assertEquals(run.lines, [
    "conntrack -D -f ipv6 -p udp --orig-port-dst 53 --orig-dst 2001:db8::1",
    "conntrack -D -f ipv4 -p udp --orig-port-dst 53 --reply-src 10.22.0.5",
  ]);
});
