/** systemd's units of cnibox: their text, put into a folder and removed again. None is enabled or started. */
import { exists } from "../kernel/regular_file.ts";
import { type Run, toolPath } from "../kernel/run.ts";
import { removeDrafts, replaceFile } from "../kernel/state_file.ts";
import { readIfUsable } from "./setup.ts";

/** Where administrators' units are. */
export const UNIT_FOLDER = "/etc/systemd/system";

/** The units by name, for the usual plugin folder. */
const UNITS: Readonly<Record<string, string>> = {
  "cni-dhcp.socket": `[Unit]
Description=CNI DHCP service socket
Documentation=man:systemd.socket(5)

[Socket]
ListenStream=/run/cni/dhcp.sock
SocketMode=0660
SocketUser=root
SocketGroup=root
RemoveOnStop=true

[Install]
WantedBy=sockets.target
`,
  "cni-dhcp.service": `[Unit]
Description=CNI DHCP service: keeps the leases of containers
After=network.target cni-dhcp.socket
Requires=cni-dhcp.socket

[Service]
ExecStart=/opt/cni/bin/dhcp daemon
Restart=on-failure
RestartSec=1
# The DHCP clients of the containers stay when the daemon stops: they keep the leases, and the next daemon takes them over.
KillMode=process
# Each lease has a process of its own.
TasksMax=infinity

[Install]
WantedBy=multi-user.target
Also=cni-dhcp.socket
`,
  "cnibox-node.service": `[Unit]
Description=cnibox node: this node's subnet, and the ways to all other nodes
After=network-online.target
Wants=network-online.target
ConditionPathExists=/etc/cnibox/node.json

[Service]
ExecStart=/opt/cni/bin/cnibox node
# What it set in the kernel stays when it ends, and is what the next one starts from.
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
`,
  "cnibox-page-cache.service": `[Unit]
Description=CNI plugins read into memory before the first container
# Every call takes a tenth longer where the kernel reads the executable piece by piece, as it is run for the first time.
Before=containerd.service crio.service docker.service kubelet.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/cat /opt/cni/bin/cnibox
StandardOutput=null

[Install]
WantedBy=multi-user.target
`,
  "cnibox-restore.service": `[Unit]
Description=CNI rules of running containers, made again after the firewall has started
After=firewalld.service nftables.service
# Started and stopped with them, and run again when they are restarted or reloaded.
PartOf=firewalld.service nftables.service
ReloadPropagatedFrom=firewalld.service nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/opt/cni/bin/cnibox restore --all
ExecReload=/opt/cni/bin/cnibox restore --all

[Install]
WantedBy=firewalld.service nftables.service
`,
};

/** The units by name, for plugins in the folder `bin`. */
export function units(bin: string): Readonly<Record<string, string>> {
  return Object.fromEntries(
    Object.entries(UNITS).map(([name, text]) => [name, text.replaceAll("/opt/cni/bin", bin)]),
  );
}

/** What was done to one file, or found there. */
export interface Row {
  readonly file: string;
  readonly state: string;
  readonly good: boolean;
}

/**
 * Where units are and what is known of them: `state`/units has each as it was installed, which is the proof that a unit
 * is ours; `state`/units-folder names the folder.
 */
export interface UnitPlace {
  readonly state: string;
  readonly run: Run;
}

/** The folder that units were put into; undefined when none were. */
export function unitFolder(state: string): string | undefined {
  return readIfUsable(`${state}/units-folder`)?.trim();
}

/** Puts the units for plugins in `bin` into `folder`. What is another's, or was changed since, is left alone. */
export async function placeUnits(bin: string, folder: string, { state, run }: UnitPlace): Promise<Row[]> {
  replaceFile(`${state}/units-folder`, `${folder}\n`, { mode: 0o644 });
  const rows: Row[] = [];
  for (const [name, text] of Object.entries(units(bin))) {
    const file = `${folder}/${name}`;
    const now = readIfUsable(file);
    if (exists(file) && now !== text && (now === undefined || now !== readIfUsable(`${state}/units/${name}`))) {
      rows.push({ file, state: "left alone: not ours, or changed since", good: false });
      continue;
    }
    replaceFile(`${state}/units/${name}`, text, { mode: 0o644 });
    if (now === text) rows.push({ file, state: "unchanged", good: true });
    else {
      removeDrafts(file);
      replaceFile(file, text, { mode: 0o644 });
      const use = name === "cni-dhcp.service" ? "its socket starts it" : `to use it: systemctl enable --now ${name}`;
      rows.push({ file, state: `installed; ${use}`, good: true });
    }
  }
  if (rows.some((row) => row.state.startsWith("installed"))) await systemctl(run, folder, ["daemon-reload"]);
  return rows;
}

/** Stops, disables and removes the units that are as they were installed. */
export async function removeUnits({ state, run }: UnitPlace): Promise<Row[]> {
  const folder = unitFolder(state);
  if (folder === undefined) return [];
  const rows: Row[] = [];
  for (const name of Object.keys(units(""))) {
    const file = `${folder}/${name}`;
    if (!exists(file)) continue;
    const now = readIfUsable(file);
    if (now === undefined || now !== readIfUsable(`${state}/units/${name}`)) {
      rows.push({ file, state: "left alone: not ours, or changed since", good: false });
      continue;
    }
    await systemctl(run, folder, ["disable", "--now", name]);
    Deno.removeSync(file);
    rows.push({ file, state: "removed", good: true });
  }
  if (rows.some(({ good }) => good)) await systemctl(run, folder, ["daemon-reload"]);
  if (exists(`${state}/units`)) Deno.removeSync(`${state}/units`, { recursive: true });
  Deno.removeSync(`${state}/units-folder`);
  return rows;
}

/** Does systemd run here as the first process of this machine? */
export function systemdRuns(): boolean {
  return Deno.uid() === 0 && exists("/run/systemd/system");
}

/** Tells systemd, where it runs and reads units of this folder. */
async function systemctl(run: Run, folder: string, args: readonly string[]): Promise<void> {
  if (folder !== UNIT_FOLDER || !systemdRuns() || toolPath("systemctl") === "") return;
  await run({ argv: ["systemctl", ...args], limitMs: 120_000 });
}
