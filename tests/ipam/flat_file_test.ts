/** whereabouts' second file: what it says where the configuration says nothing. */
import { assertEquals, assertThrows } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import { checkConf, poolSets } from "../../lib/ipam/cluster_conf.ts";

const FLAT = {
  datastore: "kubernetes",
  kubernetes: { kubeconfig: "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig" },
  range: "10.9.0.0/16",
  exclude: ["10.9.0.1"],
  enable_overlapping_ranges: false,
  log_file: "/tmp/whereabouts.log",
};

function withFile(text: string, body: (path: string) => void): void {
  const path = Deno.makeTempFileSync({ suffix: ".conf" });
  try {
    Deno.writeTextFileSync(path, text);
    body(path);
  } finally {
    Deno.removeSync(path);
  }
}

const call = (ipam: Record<string, unknown>) => ({
  config: { cniVersion: "1.0.0", name: "pods", ipam: { type: "cluster", ...ipam } },
  network: "pods",
  version: "1.0.0",
  warn: () => {},
});
const subnets = (ipam: Record<string, unknown>) =>
  poolSets(call(ipam)).flatMap(({ ranges }) => ranges.map(({ subnet }) => subnet.length));

Deno.test("whereabouts' flat file fills what the configuration leaves empty", () => {
  withFile(JSON.stringify(FLAT), (path) => {
    checkConf(call({ configuration_path: path }));
    assertEquals(subnets({ configuration_path: path }), [16]);
    assertEquals(subnets({ configuration_path: path, range: "10.8.0.0/24", exclude: [] }), [24]);
    // What is in the section counts, whole.
    assertThrows(() => checkConf(call({ configuration_path: path, kubernetes: 7 })), CniError, "kubernetes");
  });
});

Deno.test("an exclude that is in no range is named", () => {
  const ipam = { range: "10.9.0.0/16", kubernetes: {} };
  checkConf(call({ ...ipam, exclude: ["10.9.0.0/28"] }));
  assertThrows(() => checkConf(call({ ...ipam, exclude: ["10.8.0.1"] })), CniError, "10.8.0.1/32 is in no range");
});

Deno.test("a flat file that is missing, broken or no object is named", () => {
  const missing = call({ configuration_path: "/there/is/none.conf" });
  assertThrows(() => checkConf(missing), CniError, '"ipam.configuration_path" is "/there/is/none.conf"');
  for (const text of ["{", "[]", '"x"']) {
    withFile(text, (path) => {
      assertThrows(() => checkConf(call({ configuration_path: path })), CniError, path);
    });
  }
  // No file where whereabouts has it, and no store.
  assertThrows(() => checkConf(call({ range: "10.9.0.0/16" })), CniError, '"ipam.store" is missing');
});
