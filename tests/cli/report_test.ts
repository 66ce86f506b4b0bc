import { assert, assertEquals } from "@std/assert";
import { redacted, withoutSecrets } from "../../lib/cli/report.ts";

Deno.test("a configuration keeps its shape and loses its secrets", () => {
  const conf = {
    name: "pods",
    plugins: [{
      type: "cluster",
      bridge: "br0",
      ipam: {
        subnet: "10.0.0.0/24",
        store: { etcd: { endpoints: ["https://user:hunter2@10.0.0.1:2379"], password: "hunter2", key: "/etc/k.pem" } },
      },
      kubernetes: { kubeconfig: "/root/.kube/config", token: "abc" },
    }],
  };
  assertEquals(redacted(conf), {
    name: "pods",
    plugins: [{
      type: "cluster",
      bridge: "br0",
      ipam: {
        subnet: "10.0.0.0/24",
        store: {
          etcd: { endpoints: ["https://user:[removed]@10.0.0.1:2379"], password: "[removed]", key: "[removed]" },
        },
      },
      kubernetes: { kubeconfig: "[removed]", token: "[removed]" },
    }],
  });
});

Deno.test("text loses what looks like a key, a token or a password, and nothing else", () => {
  const jwt = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl";
  const secrets: [string, string][] = [
    ["Authorization: Bearer abcdef0123456789", "abcdef0123456789"],
    [`token: ${jwt}`, jwt],
    [jwt, "c2lnbmF0dXJl"],
    ['{"password": "hunter2"}', "hunter2"],
    ["ETCD_PASSWORD=hunter2", "hunter2"],
    ["https://root:hunter2@etcd:2379", "hunter2"],
    ["-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "MIIE"],
    ["-----BEGIN RSA PRIVATE KEY-----\nMIIE", "MIIE"],
  ];
  for (const [text, secret] of secrets) {
    assert(!withoutSecrets(`before\n${text}\nafter`).includes(secret), withoutSecrets(text));
    assert(withoutSecrets(`before\n${text}`).startsWith("before\n"));
  }
  const plain = '-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \\"pods\\" id: \\"a\\"" -j CNI-0123\n' +
    "2: eth0@if3: <BROADCAST> mtu 1500 link/ether 02:00:00:00:00:01\nhttp://10.0.0.1:2379/health\n";
  assertEquals(withoutSecrets(plain), plain);
});
