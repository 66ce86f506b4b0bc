/** What is drawn of a node, without one. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { Drawing, Port } from "../../lib/cli/drawing.ts";
import { dotOf, mermaidOf, treeOf } from "../../lib/cli/graph.ts";
import { svgOf } from "../../lib/cli/graph_svg.ts";

const port = (more: Partial<Port>): Port => ({
  name: "eth0",
  network: "web",
  addresses: ["10.33.0.2/24"],
  to: "",
  direct: true,
  masquerade: true,
  veth: "veth78c59bbc",
  kind: "veth",
  published: ["8080 → 80/tcp"],
  health: "ok",
  problems: [],
  ...more,
});

const drawing: Drawing = {
  host: "node",
  uplinks: [{ name: "eth0", kind: "", addresses: ["192.0.2.10/24"], up: true, isDefault: true, peers: [] }],
  bridges: [],
  containers: [
    { id: "routed", netns: "/run/netns/routed", ports: [port({})] },
    {
      id: "lan",
      netns: "/run/netns/lan",
      ports: [port({ network: "lan", to: "eth0", masquerade: false, veth: "", kind: "macvlan", published: [] })],
    },
  ],
};

Deno.test("other nodes are shown at the interface that leads to them, in every format", () => {
  const [uplink] = drawing.uplinks;
  const peers = ["node2 10.5.2.0/24 fd05:0:0:2::/64 via 10.99.0.2 dev eth0"];
  const known: Drawing = { ...drawing, uplinks: [{ ...uplink!, peers }] };
  assertStringIncludes(treeOf(known, (_, text) => text), `│  └─ node ${peers[0]}\n`);
  assertStringIncludes(mermaidOf(known), `<br/>node ${peers[0]}"]`);
  assertStringIncludes(dotOf(known), `\\nnode ${peers[0]}"];`);
  assertStringIncludes(svgOf(known), `>node ${peers[0]}<`);
});

Deno.test("containers on no bridge show their network, and whether they are masqueraded", () => {
  assertEquals(
    treeOf(drawing, (_, text) => text),
    `node
├─ eth0  192.0.2.10/24  default route
│  └─ eth0 of lan  10.33.0.2/24  network lan
└─ veth78c59bbc ── eth0 of routed  10.33.0.2/24  network web  masquerade  8080 → 80/tcp
`,
  );
  assertStringIncludes(mermaidOf(drawing), 'host_stack ---|"veth78c59bbc, network web, masquerade"| c0');
  assertStringIncludes(mermaidOf(drawing), 'up_eth0 ---|"network lan"| c1');
  assertStringIncludes(dotOf(drawing), String.raw`host_stack -- c0 [label="veth78c59bbc\nnetwork web\nmasquerade"]`);
  const svg = svgOf(drawing);
  assertMatch(svg, />web · veth78c59bbc</);
  assertMatch(svg, />lan · macvlan</);
  assertEquals([...svg.matchAll(/>masquerade</g)].length, 1);
});
