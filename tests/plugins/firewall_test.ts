import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/firewall/mod.ts";
import { forwardText, removeForwarding } from "../../lib/rules/forwarding_iptables.ts";
import { nftForwardText } from "../../lib/rules/forwarding_nft.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { parseAddress } from "../../lib/net/cidr.ts";
import { fakeCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

const PREVIOUS = { cniVersion: "1.1.0", interfaces: [{ name: "cni0" }], ips: [{ address: "10.22.0.5/24" }] };
const conf = (more: JsonObject): JsonObject => ({ prevResult: PREVIOUS, ...more });

const refused: [what: string, config: JsonObject, msg: string][] = [
  ["a number for the backend", conf({ backend: 1 }), "failed to load netconf: json: cannot unmarshal number"],
  ["no result", conf({ prevResult: undefined }), "missing prevResult from earlier plugin"],
  [
    "a result of another generation",
    conf({ prevResult: { ...PREVIOUS, cniVersion: "0.4.0" } }),
    "could not parse prevResult",
  ],
  ["an unknown policy", conf({ ingressPolicy: "closed" }), 'unknown ingress policy: "closed"'],
  ["a policy in capitals", conf({ ingressPolicy: "Isolated" }), 'unknown ingress policy: "Isolated"'],
  [
    "no interface for a policy",
    conf({ ingressPolicy: "isolated", prevResult: { ...PREVIOUS, interfaces: [] } }),
    'interface needs to be set for ingress policy "isolated", make sure to chain "firewall" plugin with "bridge"',
  ],
  [
    "an interface without a name",
    conf({ ingressPolicy: "isolated", prevResult: { ...PREVIOUS, interfaces: [{ name: "" }] } }),
    "got empty bridge name",
  ],
  [
    "a bridge that is no name",
    conf({ ingressPolicy: "isolated", prevResult: { ...PREVIOUS, interfaces: [{ name: 'a" ; flush' }] } }),
    "cannot be the name of a bridge",
  ],
  [
    "an administrator's chain of 29 characters",
    conf({ iptablesAdminChainName: "a".repeat(29) }),
    "failed to check iptables chain existence",
  ],
  [
    "an administrator's chain that is an option",
    conf({ iptablesAdminChainName: "-j" }),
    "failed to check iptables chain existence",
  ],
  [
    "an administrator's chain with a second command",
    conf({ iptablesAdminChainName: "a;b" }),
    "failed to check iptables chain existence",
  ],
];

for (const [what, config, msg] of refused) {
  Deno.test(`firewall refuses ${what} before it does anything`, async () => {
    for (const work of [plugin.add, plugin.check]) {
      const error = await assertRejects(
        () => work(fakeCall(config, { host: recordedRun("") })) as Promise<unknown>,
        CniError,
      );
      assertEquals(error.msg.includes(msg), true, error.msg);
    }
  });
}

Deno.test("firewall without addresses asks nobody", async () => {
  for (const ingressPolicy of ["", "isolated"]) {
    const config = conf({ prevResult: { ...PREVIOUS, ips: [] }, ingressPolicy });
    assertEquals((await plugin.add(fakeCall(config, { host: recordedRun("") }))).interfaces, [{ name: "cni0" }]);
    await plugin.check(fakeCall(config, { host: recordedRun("") }));
  }
});

const forwarding = {
  admin: "CNI-ADMIN",
  addresses: [parseAddress("10.22.0.5")!, parseAddress("2001:db8::5")!],
  policy: "isolated",
  bridge: "br0.10",
} as const;

Deno.test("an ADD in iptables, the container's rules last", () => {
  const all = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
  const own = "CNI firewall plugin rules (ingressPolicy: isolated)";
  assertEquals(
    forwardText({ ...forwarding, addresses: forwarding.addresses.slice(0, 1) }, { accept: true }),
    `*filter
-I FORWARD 1 -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-I CNI-FORWARD 1 -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-I FORWARD 1 -m comment --comment "${all}" -j CNI-ISOLATION-STAGE-1
-I CNI-ISOLATION-STAGE-1 1 -i br0.10 ! -o br0.10 -m comment --comment "${own}" -j CNI-ISOLATION-STAGE-2
-I CNI-ISOLATION-STAGE-1 1 -i br0.10 -o br0.10 -m comment --comment "${own}" -j DROP
-A CNI-ISOLATION-STAGE-1 -m comment --comment "${all}" -j RETURN
-I CNI-ISOLATION-STAGE-2 1 -o br0.10 -m comment --comment "${all}" -j DROP
-A CNI-ISOLATION-STAGE-2 -m comment --comment "${all}" -j RETURN
-A CNI-FORWARD -d 10.22.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.22.0.5/32 -j ACCEPT
COMMIT
`,
  );
});

Deno.test("beside firewalld only bridges are a matter of rules", () => {
  const text = forwardText({ ...forwarding, policy: "same-bridge" }, { accept: false });
  assertEquals(text.includes("CNI-FORWARD"), false);
  assertEquals(text.includes("CNI-ISOLATION-STAGE-1"), true);
});

Deno.test("an ADD in nft names the owner of each address", () => {
  const text = nftForwardText(forwarding, { network: "net1", containerId: "ctr1", ifName: "eth0" }, { accept: true });
  const lines = text.split("\n");
  const comment = '"8e48f37d5de60467-7883a6f9ce71eedb, net: net1, if: eth0, id: ctr1"';
  for (
    const line of [
      `add element inet cni_firewall cni_addresses_v4 { 10.22.0.5 comment ${comment} }`,
      `add element inet cni_firewall cni_addresses_v6 { 2001:db8::5 comment ${comment} }`,
      'add element inet cni_firewall isolated { "br0.10" . "br0.10" }',
      'add element inet cni_firewall restricted { "br0.10" }',
    ]
  ) assertEquals(lines.includes(line), true, line);
});

Deno.test("rules of an address are not taken for gone because a tool prints garbage: GC keeps its note", async () => {
  const address = parseAddress("10.22.0.5")!;
  const listing = "-N CNI-FORWARD\n-A CNI-FORWARD -s 10.22.0.5/32 -j ACCEPT\n";
  await withTools(RULE_TOOLS, async () => {
    for (const garbled of ["iptables", "iptables-restore"]) {
      const host: Run = ({ argv: [tool = ""] }) => {
        const stdout = tool === garbled ? '[{"not": json' : tool === "iptables" ? listing : "";
        return Promise.resolve({ code: 0, signal: null, stdout, stderr: "" });
      };
      await assertRejects(() => removeForwarding({ host }, [address], 4), Error, `${garbled} printed something`);
    }
  });
});
