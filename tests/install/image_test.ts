/** The image and the manifest: the same bytes each time, and what is checked in is what is printed. */
import { assertEquals, assertNotEquals } from "@std/assert";
import { join } from "@std/path";
import { parseAll } from "@std/yaml";
import { type ManifestOptions, manifestText, uninstallText } from "../../lib/cli/manifest.ts";
import { ociArchive } from "../../lib/cli/image.ts";
import { parseNodeConf } from "../../lib/node/conf.ts";
import { VERSION } from "../../lib/version.ts";
import { CNIBOX, ROOT, run, succeed, temporaryFolder } from "./support.ts";

const DEFAULTS: ManifestOptions = {
  image: `localhost/cnibox:${VERSION}`,
  namespace: "kube-system",
  backend: "vxlan",
  networks: ["10.244.0.0/16"],
  architecture: "amd64",
};
// deno-lint-ignore no-explicit-any -- Kubernetes' own objects; tests pick what they look at
type Any = any;

Deno.test("an image of the same executable has the same digest, and of another one another", () => {
  const bytes = new TextEncoder().encode("an executable ".repeat(1000));
  const options = { name: "localhost/cnibox:1", version: "1", architecture: "amd64" };
  const [one, two] = [ociArchive(bytes, options), ociArchive(bytes, options)];
  assertEquals(one, two);
  assertNotEquals(ociArchive(bytes.slice(1), options).digest, one.digest);
});

Deno.test("install.sh --image writes an archive that tar reads, with one file in one layer, twice alike", async () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "image.tar");
  const image = () => succeed(join(ROOT, "install.sh"), ["--from", CNIBOX, "--image", file]);
  await image();
  const again = join(folder.path, "again.tar");
  await Deno.rename(file, again);
  await image();
  assertEquals((await run("cmp", [file, again])).code, 0);
  const unpacked = join(folder.path, "layout");
  await Deno.mkdir(unpacked);
  await succeed("tar", ["-xf", file, "-C", unpacked]);
  const read = async (path: string): Promise<Any> => JSON.parse(await Deno.readTextFile(join(unpacked, path)));
  const blob = ({ digest }: { digest: string }) => `blobs/${digest.replace(":", "/")}`;
  const index = await read("index.json");
  const manifest = await read(blob(index.manifests[0]));
  const config = await read(blob(manifest.config));
  const layer = join(unpacked, blob(manifest.layers[0]));
  for (const one of [index.manifests[0], manifest.config, manifest.layers[0]]) {
    const path = join(unpacked, blob(one));
    assertEquals((await succeed("sha256sum", [path])).stdout.slice(0, 64), one.digest.slice(7));
    assertEquals((await Deno.stat(path)).size, one.size);
  }
  const listed = (await succeed("tar", ["--numeric-owner", "-tvzf", layer])).stdout;
  assertEquals(listed.replace(/ +\d+ 1970.*00:00 /, " "), "-rwxr-xr-x 0/0 cnibox\n");
  const plain = await succeed("sh", ["-c", 'gzip -dc "$1" | sha256sum', "sh", layer]);
  assertEquals(config.rootfs.diff_ids, [`sha256:${plain.stdout.slice(0, 64)}`]);
  assertEquals([config.os, config.config.Entrypoint], ["linux", ["/cnibox"]]);
});

Deno.test("an image that cannot take its name leaves nothing", async () => {
  using folder = temporaryFolder();
  const file = join(folder.path, "image.tar");
  await Deno.mkdir(file);
  const { code, stderr } = await run(CNIBOX, ["image", file]);
  assertEquals([code, stderr], [1, `cnibox image: ${file}: is a directory\n`]);
  assertEquals([...Deno.readDirSync(folder.path)].map(({ name }) => name), ["image.tar"]);
});

Deno.test("deploy/kubernetes.yaml is what cnibox manifest prints", async () => {
  assertEquals(await Deno.readTextFile(join(ROOT, "deploy/kubernetes.yaml")), manifestText(DEFAULTS));
});

Deno.test("the manifest has what a node needs, no right to write for the agent, and an account for cluster alone", () => {
  const networks = ["10.42.0.0/16", "fd42::/48"];
  const objects = parseAll(manifestText({ ...DEFAULTS, networks, backend: "host-gw" })) as Any[];
  assertEquals(objects.map(({ kind }) => kind), [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "ServiceAccount",
    "Secret",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "DaemonSet",
  ]);
  const [, , agents, , , leases, leasesFor, nodes, nodesFor, configuration, daemons] = objects;
  assertEquals(leases.rules, [{
    apiGroups: ["coordination.k8s.io"],
    resources: ["leases"],
    verbs: ["get", "list", "create", "update", "delete"],
  }]);
  assertEquals(nodes.rules, [{ apiGroups: [""], resources: ["nodes"], verbs: ["get"] }]);
  assertEquals([agents, leasesFor, nodesFor].map(({ subjects: [{ name }], roleRef }) => [name, roleRef.name]), [
    ["cnibox", "cnibox"],
    ["cnibox-cluster", "cnibox-cluster"],
    ["cnibox-cluster", "cnibox-cluster"],
  ]);
  assertEquals(daemons.spec.template.spec.serviceAccountName, "cnibox");
  assertEquals(objects[1].rules, [{ apiGroups: [""], resources: ["nodes"], verbs: ["get", "list", "watch"] }]);
  const conf = parseNodeConf(configuration.data["node.json"], "node.json");
  assertEquals(conf.network, {
    Network: "10.42.0.0/16",
    EnableIPv6: true,
    IPv6Network: "fd42::/48",
    Backend: { Type: "host-gw" },
  });
  const { initContainers: [install], containers: [node], volumes, tolerations } = daemons.spec.template.spec;
  assertEquals([install.args, node.args, tolerations], [["install", "--replace"], ["node"], [{ operator: "Exists" }]]);
  const names = volumes.map(({ name }: Any) => name).sort();
  assertEquals(new Set(names).size, names.length);
  for (const container of [install, node]) {
    assertEquals(container.volumeMounts.map(({ name }: Any) => name).sort(), names);
  }
});

Deno.test("uninstall is a Job for each node that is named", () => {
  const jobs = parseAll(uninstallText(DEFAULTS, ["node1", "node2"])) as Any[];
  assertEquals(jobs.map(({ kind, spec }) => [kind, spec.template.spec.nodeName]), [["Job", "node1"], ["Job", "node2"]]);
  const { initContainers, containers } = jobs[0].spec.template.spec;
  assertEquals([initContainers[0].args, containers[0].args], [["node", "--withdraw"], ["uninstall"]]);
});
