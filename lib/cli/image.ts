/**
 * `cnibox image`: an OCI image of this very executable, as one archive (https://github.com/opencontainers/image-spec,
 * image layout in a tar). One layer with one file. All times are zero, so the same executable gives the same digest
 * everywhere.
 */
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { CliError, type CommandCall, status, tell, usageError } from "./command.ts";
import { writeWhole } from "./setup.ts";

/** Name of the image, tag aside. */
export const IMAGE = "localhost/cnibox";

/** One file of a tar archive. */
export interface TarFile {
  readonly name: string;
  readonly mode: number;
  readonly bytes: Uint8Array;
}

/** `cnibox image FILE` */
export async function image(call: CommandCall): Promise<number> {
  if (!Deno.build.standalone) {
    throw new CliError("only a compiled cnibox can make an image of itself", status.failed, [
      "./install.sh --image FILE",
    ]);
  }
  const file = call.arg("FILE") ?? "";
  const name = call.value("name") ?? `${IMAGE}:${call.invocation.version}`;
  if (!/^[\w.:/-]+:[\w.-]+$/.test(name)) {
    throw usageError(`--name ${JSON.stringify(name)} is not an image's name`, "NAME:TAG, as registry.example/cnibox:1");
  }
  const { archive, digest } = ociArchive(Deno.readFileSync(Deno.execPath()), {
    name,
    version: call.invocation.version,
    architecture: Deno.build.arch === "aarch64" ? "arm64" : "amd64",
  });
  await writeWhole(file, (draft) => Deno.writeFileSync(draft, archive));
  const text = `${file}: ${name}, ${(archive.length / 1e6).toFixed(1)} MB, ${digest}\n`;
  tell(call, { file, name, digest, bytes: archive.length }, () => text);
  return status.done;
}

/** The archive, and the digest of the image's manifest, which registries know it by. */
export function ociArchive(
  executable: Uint8Array,
  { name, version, architecture }: { readonly name: string; readonly version: string; readonly architecture: string },
): { archive: Uint8Array; digest: string } {
  const layer = tar([{ name: "cnibox", mode: 0o755, bytes: executable }]);
  const blobs: TarFile[] = [];
  const blob = (bytes: Uint8Array, mediaType: string) => {
    const digest = sha256(bytes);
    blobs.push({ name: `blobs/sha256/${digest.slice("sha256:".length)}`, mode: 0o644, bytes });
    return { mediaType, digest, size: bytes.length };
  };
  const created = "1970-01-01T00:00:00Z";
  const compressed = blob(gzipSync(layer, { level: 6 }), "application/vnd.oci.image.layer.v1.tar+gzip");
  const config = blob(
    json({
      created,
      architecture,
      os: "linux",
      config: {
        Entrypoint: ["/cnibox"],
        Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        Labels: { "org.opencontainers.image.version": version },
      },
      rootfs: { type: "layers", diff_ids: [sha256(layer)] },
      history: [{ created, created_by: "cnibox image" }],
    }),
    "application/vnd.oci.image.config.v1+json",
  );
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  const manifest = blob(json({ schemaVersion: 2, mediaType, config, layers: [compressed] }), mediaType);
  const tag = name.slice(name.lastIndexOf(":") + 1);
  const annotations = { "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name };
  const index = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [{ ...manifest, platform: { architecture, os: "linux" }, annotations }],
  };
  const archive = tar([
    { name: "oci-layout", mode: 0o644, bytes: json({ imageLayoutVersion: "1.0.0" }) },
    { name: "index.json", mode: 0o644, bytes: json(index) },
    ...blobs.sort((a, b) => a.name < b.name ? -1 : 1),
  ]);
  return { archive, digest: manifest.digest };
}

function sha256(bytes: Uint8Array): string {
  return `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
}

function json(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

const BLOCK = 512;

/**
 * A tar archive (POSIX ustar) of plain files that belong to root, in the given order, with times of zero. Names: 100
 * bytes at most.
 */
export function tar(files: readonly TarFile[]): Uint8Array {
  const sizes = files.map(({ bytes }) => BLOCK + Math.ceil(bytes.length / BLOCK) * BLOCK);
  // Two empty blocks at the end.
  const archive = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0) + 2 * BLOCK);
  let at = 0;
  files.forEach((file, index) => {
    archive.set(header(file), at);
    archive.set(file.bytes, at + BLOCK);
    at += sizes[index] ?? 0;
  });
  return archive;
}

function header({ name, mode, bytes }: TarFile): Uint8Array {
  const block = new Uint8Array(BLOCK);
  const put = (at: number, text: string) => block.set(new TextEncoder().encode(text), at);
  const octal = (value: number, width: number) => value.toString(8).padStart(width, "0");
  put(0, name);
  put(100, `${octal(mode, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0${octal(bytes.length, 11)}\0${octal(0, 11)}\0`);
  put(148, " ".repeat(8));
  put(156, "0");
  put(257, "ustar\x0000");
  put(265, "root");
  put(297, "root");
  put(148, `${octal(block.reduce((sum, one) => sum + one, 0), 6)}\0 `);
  return block;
}
