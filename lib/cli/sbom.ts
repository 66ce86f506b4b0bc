/**
 * `cnibox version --sbom`: what this executable is made of, as CycloneDX 1.5. A test compares the list with the
 * program's imports.
 */

/** npm packages that are in the program itself, by name. Those of tests and build alone are not shipped. */
export const PACKAGES: readonly { readonly name: string; readonly version: string; readonly license: string }[] = [
  { name: "@humanwhocodes/momoa", version: "3.3.13", license: "Apache-2.0" },
  { name: "deno-std", version: "1.4.0", license: "MIT" },
  { name: "ipaddr.js", version: "2.5.0", license: "MIT" },
];

/** The document. Same executable, same bytes: no date, no random serial number. */
export function sbom(version: string): unknown {
  const plain = version.replace(/^v/, "");
  const { deno, v8 } = Deno.version;
  const parts = [
    { type: "platform", name: "deno", version: deno, license: "MIT", purl: `pkg:cargo/deno@${deno}` },
    { type: "platform", name: "v8", version: v8, license: "BSD-3-Clause", purl: `pkg:generic/v8@${v8}` },
    ...PACKAGES.map((one) => ({
      type: "library",
      ...one,
      purl: `pkg:npm/${one.name.replace("@", "%40")}@${one.version}`,
    })),
  ];
  const root = `pkg:generic/cnibox@${plain}`;
  const components = parts.map(({ type, name, version, license, purl }) => ({
    ...{ type, "bom-ref": purl, name, version },
    licenses: [{ license: { id: license } }],
    purl,
  }));
  return {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      component: {
        type: "application",
        "bom-ref": root,
        name: "cnibox",
        version: plain,
        licenses: [{ license: { id: "Apache-2.0" } }],
        purl: root,
      },
    },
    components,
    dependencies: [{ ref: root, dependsOn: components.map((one) => one["bom-ref"]) }],
  };
}
