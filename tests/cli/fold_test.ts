import { assertEquals, assertThrows } from "@std/assert";
import { folded, unfolded } from "../../lib/cli/fold.ts";
import { parseList } from "../../lib/cni/conflist.ts";

const pods = `{
    "cniVersion": "1.0.0",
    "cniVersions": ["0.4.0", "1.0.0"],
    "plugins": [
        // the link
        {
            "type": "bridge", "big": 12345678901234567890,
            "ipam": { "type": "host-local", "subnet": "10.85.0.0/24" }
        },
        { "type": "portmap", "capabilities": { "portMappings": true, "mac": false } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } }
    ],
    "name": "pods", "disableCheck": true, "unknown": 1.50
}
`;

const membersOf = (text: string) => parseList(new TextEncoder().encode(text.replaceAll(/^ *\/\/.*$/gm, ""))).plugins;

Deno.test("fold changes nothing but plugins, collects the capabilities, and unfold goes back to the byte", () => {
  const text = folded("pods.conflist", pods);
  assertEquals(text.split("\n").slice(0, 8), [
    "{",
    '    "cniVersion": "1.0.0",',
    '    "cniVersions": ["0.4.0", "1.0.0"],',
    '    "plugins": [',
    "        {",
    '            "type": "chain",',
    '            "capabilities": { "portMappings": true, "bandwidth": true },',
    '            "plugins": [',
  ]);
  assertEquals(text.split("\n").at(-3), '    "name": "pods", "disableCheck": true, "unknown": 1.50');
  assertEquals(membersOf(text), membersOf(pods));
  assertEquals(unfolded("pods.conflist", text), { text: pods, notes: [] });
  assertEquals(folded("pods.conflist", text), text);
});

Deno.test("fold takes a list in one line, and members that are in chains already", () => {
  const line =
    '{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},{"type":"chain","plugins":[{"type":"tuning"}]}]}';
  const text = folded("n.conflist", line);
  assertEquals(
    text,
    '{"name":"n","cniVersion":"1.0.0","plugins":[{ "type": "chain", "plugins": [{"type":"bridge"},{"type":"tuning"}] }]}',
  );
  assertEquals(
    unfolded("n.conflist", text).text,
    '{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"},{"type":"tuning"}]}',
  );
});

Deno.test("unfold hands the chain's args to members without, and tells what reaches a member now", () => {
  const { text, notes } = unfolded(
    "n.conflist",
    '{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"chain","args":{"cni":{"mac":"x"}},"plugins":' +
      '[{"type":"bridge","args":{}},{"type":"portmap","capabilities":{"portMappings":true}}]}]}',
  );
  assertEquals(JSON.parse(text).plugins, [
    { type: "bridge", args: {} },
    { args: { cni: { mac: "x" } }, type: "portmap", capabilities: { portMappings: true } },
  ]);
  assertEquals(notes, ["portmap declares portMappings, which the chain does not pass on; the unfolded list does"]);
});

Deno.test("fold refuses what no chain can be made of", () => {
  const words = (text: string) => assertThrows(() => folded("n.conflist", text), Error).message;
  assertEquals(words('{"type":"bridge","name":"n"}'), "n.conflist: a single plugin's configuration, not a list");
  assertEquals(
    words('{"name":"n","cniVersion":"0.3.1","plugins":[{"type":"x"}]}'),
    'n.conflist: chain needs "cniVersion" 0.4.0 or later',
  );
  assertEquals(words('{"name":"n","cniVersion":"1.0.0"}'), "n.conflist: no plugins in the list itself");
  assertEquals(words('{"name":"n",'), "n.conflist:1:13: " + words('{"name":"n",').split(": ").slice(1).join(": "));
  assertEquals(
    words('{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"chain","plugins":[{"type":"chain","plugins":[]}]}]}'),
    "failed to parse plugin config 0: plugins.0 (chain): a chain cannot hold another chain",
  );
});
