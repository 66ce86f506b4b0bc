/** A real kube-apiserver in a world of machines: who may do what, and the objects that a test needs. */
import { fromFileUrl } from "@std/path";
import type { Background, Node } from "../e2e/support/node.ts";
import type { Json } from "../e2e/support/plugins.ts";
import { eventually } from "../e2e/support/traffic.ts";
import type { World } from "../e2e/support/world.ts";

/** The folder of the Kubernetes programs, or why there is none. */
export function kubernetes(): { folder: string } | { missing: string } {
  const script = fromFileUrl(new URL("./kubernetes.sh", import.meta.url));
  const { success, stdout, stderr } = new Deno.Command("/bin/bash", { args: [script, "--offline"], stdin: "null" })
    .outputSync();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  return success
    ? { folder: text(stdout) }
    : { missing: `Kubernetes: ${text(stderr).replace(/^kubernetes.sh: /, "")}` };
}

/** Bearer tokens by user. */
const TOKENS = {
  admin: "token-of-the-admin",
  cnibox: "token-of-cnibox-itself",
  stranger: "token-of-one-without-rights",
};
export type User = keyof typeof TOKENS;

/** The administrator's token: group system:masters. */
export const ADMIN = TOKENS.admin;

/** Where everything is on each machine and on the switch. */
export const FOLDER = "/etc/kube";
const LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/** The server, as its administrator. */
export class ApiServer {
  readonly url = "https://10.99.0.254:6443";
  constructor(readonly world: World, readonly folder: string) {}

  /** Sends a request as the administrator, which has to succeed. */
  async ask(method: string, path: string, body?: Json): Promise<Json> {
    const argv = ["curl", "-s", "-S", "-m", "30", "--cacert", `${FOLDER}/ca.pem`, "-X", method];
    const headers = ["-H", `Authorization: Bearer ${TOKENS.admin}`, "-H", "Content-Type: application/json"];
    const data = body === undefined ? [] : ["-d", JSON.stringify(body)];
    const text = await this.world.hub.run(...argv, ...headers, ...data, `${this.url}${path}`);
    const answer = JSON.parse(text);
    if (answer.kind === "Status" && answer.status === "Failure") {
      throw new Error(`${method} ${path}: ${answer.message}`);
    }
    return answer;
  }

  /** Lease objects of cnibox. */
  async leases(): Promise<Json[]> {
    return (await this.ask("GET", `${LEASES}?labelSelector=app.kubernetes.io/managed-by=cnibox`)).items;
  }

  /** Starts the controller that removes what deleted objects own. */
  collectGarbage(): Background {
    return this.world.hub.spawn([
      `${this.folder}/kube-controller-manager`,
      ...["--kubeconfig", `${FOLDER}/admin.kubeconfig`, "--controllers", "garbagecollector", "--leader-elect=false"],
      ...["--port", "0", "--secure-port", "0"],
    ]);
  }
}

/** A kubeconfig in {@linkcode FOLDER}, with `user` as its user section. */
export function kubeconfig(user: Json): string {
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    "current-context": "test",
    contexts: [{ name: "test", context: { cluster: "test", user: "somebody" } }],
    clusters: [{
      name: "test",
      cluster: { server: "https://10.99.0.254:6443", "certificate-authority": `${FOLDER}/ca.pem` },
    }],
    users: [{ name: "somebody", user }],
  });
}

/** Somebody else whom the server knows by a bearer token. */
export interface Account {
  readonly user: string;
  readonly group: string;
  readonly token: string;
}

/** Keys and certificates, all by one authority; `cnibox` is a client's. */
async function certificates(hub: Node, accounts: readonly Account[]): Promise<void> {
  await hub.sh(
    `mkdir -p "$1"; cd "$1"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=test authority" -keyout ca.key -out ca.pem 2>&1
    printf 'subjectAltName=IP:10.99.0.254,IP:127.0.0.1,IP:10.96.0.1\\n' >ext
    for name in server cnibox; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout $name.key -out $name.csr 2>&1
      openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem 2>&1
    done
    openssl genrsa -out accounts.key 2048 2>&1`,
    FOLDER,
  );
  const tokens = Object.entries(TOKENS).map(([user, token]) =>
    `${token},${user},${user},"${user === "admin" ? "system:masters" : "users"}"\n`
  );
  for (const { user, group, token } of accounts) tokens.push(`${token},${user},${user},"${group}"\n`);
  await hub.write(`${FOLDER}/tokens.csv`, tokens.join(""), 0o600);
}

/** Starts the server beside the world's etcd, and waits until it answers. `args`: further ones of kube-apiserver. */
export async function startServer(
  world: World,
  folder: string,
  { accounts = [], args = [] }: { readonly accounts?: readonly Account[]; readonly args?: readonly string[] } = {},
): Promise<ApiServer> {
  const { hub } = world;
  await certificates(hub, accounts);
  const server = new ApiServer(world, folder);
  const running = hub.spawn([
    `${folder}/kube-apiserver`,
    ...["--etcd-servers", world.etcd, "--bind-address", "10.99.0.254", "--advertise-address", "10.99.0.254"],
    ...["--secure-port", "6443", "--service-cluster-ip-range", "10.96.0.0/16", "--cert-dir", "/run/kube"],
    ...["--tls-cert-file", `${FOLDER}/server.pem`, "--tls-private-key-file", `${FOLDER}/server.key`],
    ...["--client-ca-file", `${FOLDER}/ca.pem`, "--token-auth-file", `${FOLDER}/tokens.csv`],
    ...["--service-account-issuer", "https://kubernetes.default.svc"],
    ...["--service-account-signing-key-file", `${FOLDER}/accounts.key`],
    ...["--service-account-key-file", `${FOLDER}/accounts.key`, "--authorization-mode", "Node,RBAC"],
    ...args,
  ]);
  await eventually(
    "the API server has its namespaces",
    () => server.ask("GET", "/api/v1/namespaces/kube-system").then(() => true, () => false),
    120_000,
  ).catch((error) => {
    throw new Error(`${error}\n${running.stderr.slice(-2000)}`);
  });
  await hub.write(`${FOLDER}/admin.kubeconfig`, kubeconfig({ token: TOKENS.admin }), 0o600);
  return server;
}

/**
 * The server, and a Node object for each machine; user `cnibox` gets the rights that the documentation names, and to
 * watch.
 */
export async function startApiServer(world: World, folder: string): Promise<ApiServer> {
  const { hub } = world;
  const server = await startServer(world, folder);
  await grant(server);
  for (const node of world.nodes) {
    await node.write(`${FOLDER}/ca.pem`, await hub.read(`${FOLDER}/ca.pem`) ?? "");
    for (const [user, token] of Object.entries(TOKENS)) {
      await node.write(`${FOLDER}/${user}.kubeconfig`, kubeconfig({ token }), 0o600);
    }
    for (const name of ["cnibox.pem", "cnibox.key"]) {
      await node.write(`${FOLDER}/${name}`, await hub.read(`${FOLDER}/${name}`) ?? "", 0o600);
    }
    await server.ask("POST", "/api/v1/nodes", { kind: "Node", metadata: { name: world.nameOf(node) } });
  }
  await hub.write(`${FOLDER}/cnibox.kubeconfig`, kubeconfig({ token: TOKENS.cnibox }), 0o600);
  return server;
}

async function grant(server: ApiServer): Promise<void> {
  const path = "/apis/rbac.authorization.k8s.io/v1";
  const subjects = [{ kind: "User", name: "cnibox", apiGroup: "rbac.authorization.k8s.io" }];
  const metadata = { name: "cnibox" };
  await server.ask("POST", `${path}/clusterroles`, {
    metadata,
    rules: [{ apiGroups: [""], resources: ["nodes"], verbs: ["get"] }],
  });
  await server.ask("POST", `${path}/clusterrolebindings`, {
    metadata,
    subjects,
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "cnibox" },
  });
  // The last one for verbs.ts alone: cluster itself never watches.
  const verbs = ["get", "list", "create", "update", "delete", "watch"];
  await server.ask("POST", `${path}/namespaces/kube-system/roles`, {
    metadata,
    rules: [{ apiGroups: ["coordination.k8s.io"], resources: ["leases"], verbs }],
  });
  await server.ask("POST", `${path}/namespaces/kube-system/rolebindings`, {
    metadata,
    subjects,
    roleRef: { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name: "cnibox" },
  });
}
