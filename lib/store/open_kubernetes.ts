/** A Kubernetes API as a store, from what a configuration says. */
import { CniError, code } from "../cni/error.ts";
import type { Run } from "../kernel/run.ts";
import { type Access, fromKubeconfig, inCluster } from "./kubeconfig.ts";
import { KubernetesApi } from "./kubernetes_api.ts";
import { KubernetesStore } from "./kubernetes.ts";
import { NodeObjects } from "./kubernetes_nodes.ts";
import type { Store } from "./store.ts";

/** Which API, and which node asks. */
export interface KubernetesSettings {
  readonly kubeconfig?: string | undefined;
  readonly namespace?: string | undefined;
  readonly node: string;
}

/** Namespace where nothing says another: there every cluster has one, and its objects outlive applications. */
const NAMESPACE = "kube-system";

/**
 * Reads the access; nothing is asked yet. `close` removes what was written for curl.
 *
 * @throws {CniError} code 7 when the kubeconfig cannot be used
 */
export function openKubernetes(
  run: Run,
  { kubeconfig, namespace, node }: KubernetesSettings,
  deadline: () => number,
): { store: () => Store; close: () => void } {
  const access = open(kubeconfig, 'see "store.kubernetes" in "ipam"');
  const conf = { access, namespace: namespace ?? access.namespace ?? NAMESPACE, node };
  const store = new KubernetesStore(run, conf, { deadline });
  return { store: () => store, close: access.close };
}

/**
 * The Node objects of an API, by a kubeconfig or the service account's files.
 *
 * @throws {CniError} code 7 when the kubeconfig cannot be used
 */
export function openNodes(
  run: Run,
  kubeconfig: string | undefined,
  deadline: () => number,
): { nodes: NodeObjects; close: () => void } {
  const access = open(kubeconfig, 'see "store.kubernetes"');
  return { nodes: new NodeObjects(new KubernetesApi(run, access, { deadline })), close: access.close };
}

function open(kubeconfig: string | undefined, advice: string): Access {
  try {
    return kubeconfig === undefined ? inCluster() : fromKubeconfig(kubeconfig);
  } catch (error) {
    throw new CniError(code.config, (error as Error).message, advice);
  }
}
