/** Everything that an integration test needs; docs/testing.md shows how. */
export * from "./node.ts";
export * from "./plugins.ts";
export * from "./needs.ts";
export * from "./snapshot.ts";
export * from "./test.ts";
export * from "./tools.ts";
export * from "./trace.ts";
export * from "./traffic.ts";
export * from "./vm.ts";
