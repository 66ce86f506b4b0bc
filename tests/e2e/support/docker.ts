/** docker inside a node: its daemon without any network of its own, and an image that comes from no registry. */
import type { Node } from "./node.ts";

/** Starts dockerd, whose containers are below the cgroup, with BusyBox as the image `busybox`. */
export async function startDockerd(node: Node, cgroup: string): Promise<void> {
  const daemon = node.spawn([
    ...["dockerd", "--data-root=/run/docker-data", "--storage-driver=vfs", `--cgroup-parent=/${cgroup}`],
    ...["--bridge=none", "--iptables=false", "--ip-forward=false"],
  ]);
  await daemon.until(/API listen on /, 60_000);
  await node.write("/run/image/bin/busybox", await Deno.readFile("/bin/busybox"), 0o755);
  await node.sh(`cd /run/image; mkdir etc
for name in httpd ip sh; do ln -s busybox bin/$name; done
tar -c . | docker import - busybox`);
}
