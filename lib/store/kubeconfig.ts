/** How a program gets to a Kubernetes API: a kubeconfig file, or the files that a pod's service account is given. */
import { parse } from "@std/yaml";
import { systemWords } from "../kernel/regular_file.ts";
import type { Endpoint } from "./curl.ts";
import { word } from "./store.ts";

/** An API server and the credentials for it. Files are read when they are used: tokens are renewed. */
export interface Access {
  readonly endpoint: Endpoint;
  /** The bearer token as it is now. */
  token(): string | undefined;
  /** Namespace of the context or the pod; undefined when none is named. */
  readonly namespace: string | undefined;
  /** Removes what was written for curl. */
  close(): void;
}

/** Where a service account's files are in a pod. */
const SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount";

/** Certificates that a kubeconfig holds itself are files for curl while they are used, for root only. */
const SCRATCH = "/run/cnibox/store";

/** Access by a pod's service account. Throws when this process is not in a pod. */
export function inCluster(folder = SERVICE_ACCOUNT): Access {
  const [host, port] = [Deno.env.get("KUBERNETES_SERVICE_HOST"), Deno.env.get("KUBERNETES_SERVICE_PORT")];
  if (!host || !port) {
    throw new Error("no kubeconfig is named, and KUBERNETES_SERVICE_HOST is not set: this is not a pod");
  }
  const shown = host.includes(":") ? `[${host}]` : host;
  return {
    endpoint: { url: `https://${shown}:${port}`, caFile: `${folder}/ca.crt` },
    token: () => readLine(`${folder}/token`),
    namespace: readLine(`${folder}/namespace`),
    close: () => {},
  };
}

interface Named {
  readonly name?: unknown;
  readonly cluster?: Readonly<Record<string, unknown>>;
  readonly user?: Readonly<Record<string, unknown>>;
  readonly context?: Readonly<Record<string, unknown>>;
}

/** Access by a kubeconfig file. Throws, naming the file and what is wrong in it. */
export function fromKubeconfig(path: string): Access {
  const fault = (text: string) => new Error(`kubeconfig ${path}: ${text}`);
  let file: Readonly<Record<string, unknown>>;
  try {
    file = parse(Deno.readTextFileSync(path)) as Record<string, unknown>;
  } catch (error) {
    throw fault(systemWords(error).split("\n")[0] ?? "");
  }
  if (typeof file !== "object" || file === null) throw fault("no object");
  const named = (list: string, name: unknown) => {
    const all = Array.isArray(file[list]) ? file[list] as Named[] : [];
    const found = all.find((one) => one?.name === name);
    if (found === undefined) throw fault(`no ${list.slice(0, -1)} is named ${JSON.stringify(name)}`);
    return found;
  };
  const context = named("contexts", file["current-context"]).context ?? {};
  const cluster = named("clusters", context.cluster).cluster ?? {};
  const user = context.user === undefined ? {} : named("users", context.user).user ?? {};
  for (const key of ["exec", "auth-provider", "username"]) {
    if (key in user) throw fault(`"${key}" of user "${context.user}" is not supported: use a token or a certificate`);
  }
  const server = word(cluster.server);
  if (server === undefined || !/^https?:\/\//.test(server)) throw fault("the cluster has no server");

  const written: string[] = [];
  const relative = (value: string) =>
    value.startsWith("/") ? value : `${path.slice(0, path.lastIndexOf("/") + 1)}${value}`;
  const fileOf = (holder: Readonly<Record<string, unknown>>, key: string): string | undefined => {
    const data = word(holder[`${key}-data`]);
    if (data !== undefined) return writeScratch(data, written);
    const name = word(holder[key]);
    return name === undefined ? undefined : relative(name);
  };
  const tokenFile = word(user.tokenFile);
  const token = word(user.token);
  return {
    endpoint: {
      url: server,
      caFile: fileOf(cluster, "certificate-authority"),
      certFile: fileOf(user, "client-certificate"),
      keyFile: fileOf(user, "client-key"),
      insecure: cluster["insecure-skip-tls-verify"] === true,
      serverName: word(cluster["tls-server-name"]),
    },
    token: () => token ?? (tokenFile === undefined ? undefined : readLine(relative(tokenFile))),
    namespace: word(context.namespace),
    close: () => {
      for (const one of written.splice(0)) {
        try {
          Deno.removeSync(one);
        } catch {
          // Nobody needs it any more.
        }
      }
    },
  };
}

function readLine(path: string): string {
  return Deno.readTextFileSync(path).trim();
}

function writeScratch(base64: string, written: string[]): string {
  Deno.mkdirSync(SCRATCH, { recursive: true, mode: 0o700 });
  const path = Deno.makeTempFileSync({ dir: SCRATCH });
  written.push(path);
  Deno.writeTextFileSync(path, atob(base64), { mode: 0o600 });
  return path;
}
