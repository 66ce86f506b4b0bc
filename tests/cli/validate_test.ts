/**
 * `validate` on a folder of broken configurations: tests/cli/broken/, what is expected in
 * tests/cli/broken/expected.txt.
 */
import { assert, assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { PRINTABLE } from "../fakes/iproute2.ts";
import type { Runtime } from "../../lib/cni/chain.ts";
import type { Finding } from "../../lib/cli/config_source.ts";
import { examine, type Report } from "../../lib/cli/validate.ts";
import { loadPlugin, pluginNames } from "../../plugins/mod.ts";

const folder = fromFileUrl(new URL("./broken", import.meta.url));

/** Plugins are taken from this program, and none is installed but one that is another's. */
async function reportOf(paths: string[], path = "/nowhere"): Promise<Report> {
  const runtime: Runtime = {
    path: [path],
    cache: "",
    registry: loadPlugin,
    builtin: true,
    env: {},
    warn: () => {},
    stderr: () => {},
  };
  const folders = { conf: "", cache: "", data: "", path: [path], pathGiven: false, root: "" };
  return await examine(paths, { runtime, folders, names: pluginNames });
}

const lineOf = ({ file, line, column, severity, message, hint }: Finding) =>
  `${file.slice(folder.length + 1)}:${line}:${column}: ${severity}: ${message}${hint ? ` (${hint})` : ""}`;

/** What is said of every file and folder in it. */
async function said(): Promise<string> {
  const blocks: string[] = [];
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name !== "expected.txt").sort();
  for (const name of names) {
    const { findings, picked } = await reportOf([`${folder}/${name}`]);
    const picks = picked.map(({ file, network, usable }) =>
      `${name}: taken: ${
        file === "" ? "nothing" : `${file.slice(folder.length + 1)} (${network}${usable ? "" : ", fails"})`
      }`
    );
    blocks.push([...findings.map(lineOf), ...picks].join("\n"));
  }
  return `${blocks.join("\n\n")}\n`;
}

Deno.test("validate finds every mistake of the broken configurations where it is", async () => {
  const text = await said();
  if (Deno.env.get("CNIBOX_WRITE_EXPECTED")) await Deno.writeTextFile(`${folder}/expected.txt`, text);
  assertEquals(text, await Deno.readTextFile(`${folder}/expected.txt`));
});

Deno.test("no broken configuration goes unnoticed, and there are enough of them", async () => {
  const entries = [...Deno.readDirSync(folder)].filter(({ name }) => name !== "expected.txt");
  assert(entries.length >= 40);
  for (const { name } of entries) {
    const { findings, picked } = await reportOf([`${folder}/${name}`]);
    assert(findings.length > 0 || picked.some(({ file }) => file === ""), name);
  }
});

Deno.test("the configurations of the documentation are found sound", async () => {
  const examples = fromFileUrl(new URL("../../docs/examples", import.meta.url));
  const { findings } = await reportOf([...Deno.readDirSync(examples)].map(({ name }) => `${examples}/${name}`));
  assertEquals(findings.filter(({ rule }) => rule !== "not-installed").map(lineOf), []);
});

/** A list as nerdctl writes it, and one of podman's. */
const OF_RUNTIMES = [
  `{"cniVersion": "1.0.0", "name": "bridge",
  "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
  "nerdctlLabels": {"nerdctl/default-network": "true"},
  "plugins": [
    {"type": "bridge", "bridge": "nerdctl0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {"ranges": [[{"gateway": "10.4.0.1", "subnet": "10.4.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
        "type": "host-local"}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall", "ingressPolicy": "same-bridge"},
    {"type": "tuning"}]}`,
  `{"args": {"podman_labels": {"team": "shop"}, "podman_options": {"isolate": "true"}},
  "cniVersion": "0.4.0", "name": "one",
  "plugins": [
    {"type": "bridge", "bridge": "cni-podman1", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]]},
      "capabilities": {"ips": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall", "backend": "", "ingressPolicy": "same-bridge"},
    {"type": "tuning"}]}`,
];

Deno.test("lists that nerdctl and podman write are found sound, with the keys that these have for themselves", async () => {
  for (const text of OF_RUNTIMES) {
    const file = await Deno.makeTempFile({ suffix: ".conflist" });
    try {
      await Deno.writeTextFile(file, text);
      const { findings } = await reportOf([file]);
      assertEquals(findings.filter(({ rule }) => rule !== "not-installed").map(lineOf), []);
      // The same key for anything else has no effect.
      await Deno.writeTextFile(file, text.replace("podman_labels", "cni").replace('"nerdctlID"', '"nerdctID"'));
      const spoiled = (await reportOf([file])).findings.filter(({ rule }) => rule === "unknown-key");
      assertEquals(spoiled.length, 1);
    } finally {
      await Deno.remove(file);
    }
  }
});

Deno.test("keys are read in any case, and that is said", async () => {
  const file = await Deno.makeTempFile({ suffix: ".conflist" });
  try {
    await Deno.writeTextFile(
      file,
      '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","MTU":"x","IPAM":{"type":"static"}}]}',
    );
    const { findings } = await reportOf([file]);
    assertEquals(findings.map(({ rule, severity }) => [rule, severity]), [
      ["key-case", "note"],
      ["value", "error"],
      ["key-case", "note"],
      ["no-effect", "warning"],
    ]);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("ranges may be the runtime's affair alone", async () => {
  const file = await Deno.makeTempFile({ suffix: ".conflist" });
  try {
    const bridge = { type: "bridge", capabilities: { ipRanges: true }, ipam: { type: "host-local" } };
    await Deno.writeTextFile(file, JSON.stringify({ cniVersion: "1.0.0", name: "n", plugins: [bridge] }));
    const { findings } = await reportOf([file]);
    assertEquals(findings.map(({ message }) => message), []);
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("a foreign plugin is asked which versions it speaks", async () => {
  const bin = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(
      `${bin}/theirs`,
      '#!/bin/sh\necho \'{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}\'\n',
      { mode: 0o755 },
    );
    await Deno.writeTextFile(
      `${bin}/n.conflist`,
      '{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"theirs"},{"type":"tehirs"}]}',
    );
    const { findings } = await reportOf([`${bin}/n.conflist`], bin);
    assertEquals(findings.map(({ message, hint }) => [message, hint]), [
      ["theirs does not speak version 1.0.0", "it speaks 0.3.1, 0.4.0"],
      [`there is no plugin "tehirs" in ${bin}`, 'did you mean "theirs"?'],
    ]);
  } finally {
    await Deno.remove(bin, { recursive: true });
  }
});

Deno.test("validate says of every printable character whether ADD refuses it in a name", async () => {
  const file = Deno.makeTempFileSync({ suffix: ".conflist" });
  const ipam = { type: "static", addresses: [{ address: "10.1.0.2/24", gateway: "10.1.0.1" }] };
  const signs = PRINTABLE.filter((char) => /\W/.test(char));
  const names = [
    ...signs.filter((sign) => sign !== ".").flatMap((sign) => [sign, `x${sign}y`, `x${sign}`]),
    ...PRINTABLE.filter((char) => /\w/.test(char)).join("").match(/.{1,13}/g) ?? [],
  ];
  const fields: [plugins: (name: string) => unknown[], refused: RegExp][] = [
    [(bridge) => [{ type: "bridge", bridge, ipam }], /[/:%]/],
    [
      (bridge) => [{ type: "bridge", bridge, ipam }, { type: "firewall", ingressPolicy: "isolated" }],
      /[/:%"\\]|\+$|^!$/,
    ],
    [
      (bridge) => [{ type: "bridge", bridge, ipam }, {
        type: "firewall",
        ingressPolicy: "isolated",
        backend: "nftables",
      }],
      /[/:%"\\]|\*$/,
    ],
    // These may be alternative names.
    ...["macvlan", "ipvlan", "vlan"].map((type): [(name: string) => unknown[], RegExp] => [
      (master) => [{ type, master, ...(type === "vlan" && { vlanId: 5 }), ipam }],
      /\//,
    ]),
    [(device) => [{ type: "host-device", device, ipam }], /\//],
    [(bridge) => [{ type: "tap", bridge, ipam }], /\//],
    [(vrfname) => [{ type: "ptp", ipam }, { type: "vrf", vrfname }], /[/:%]/],
  ];
  try {
    for (const [plugins, refused] of fields) {
      for (const name of names) {
        Deno.writeTextFileSync(file, JSON.stringify({ cniVersion: "1.0.0", name: "net1", plugins: plugins(name) }));
        const { findings } = await reportOf([file]);
        const errors = findings.filter(({ severity }) => severity === "error").map(({ message }) => message);
        assertEquals(errors.length > 0, refused.test(name), `${JSON.stringify(plugins(name))}: ${errors}`);
      }
    }
  } finally {
    Deno.removeSync(file);
  }
});
