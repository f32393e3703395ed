//! The built component against the world in `wit/`.
//!
//! It offers what the world exports, and imports nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use verve_tests::paths;
use wit_component::{DecodedWasm, decode, targets};
use wit_parser::{Resolve, WorldId};

/// Checks that a build needs no more and offers no less than a world specifies.
fn check(component: &Path, world: &str) -> Result<()> {
    let component = fs::read(component)?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(paths::repository().join("wit"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    targets(&resolve, world, &component).context("the component needs more than wit/ declares, or offers less")
}

#[test]
fn the_component_fits_its_world() -> Result<()> {
    check(&paths::component()?, "accept")
}

#[test]
fn the_counter_fits_its_world() -> Result<()> {
    check(&paths::other_component("verve_counter.wasm")?, "counter")
}

/// Returns the interfaces that a world imports, and those that it exports.
///
/// WASI 0.2 is named without its patch version, since the linker takes the highest one.
fn interfaces(resolve: &Resolve, world: WorldId) -> [BTreeSet<String>; 2] {
    let world = &resolve.worlds[world];
    [&world.imports, &world.exports].map(|items| {
        let names = items.keys().map(|key| resolve.name_world_key(key));
        names
            .map(|name| match name.split_once("@0.2.") {
                Some((name, _)) => format!("{name}@0.2"),
                None => name,
            })
            .collect()
    })
}

#[test]
fn the_builds_for_wasi_0_2_fit_their_own() -> Result<()> {
    check_p2(&paths::component_p2()?, "accept-wasip2")?;
    check_p2(&paths::other_component("verve_counter_p2.wasm")?, "blocking-counter")
}

fn check_p2(component: &Path, world: &str) -> Result<()> {
    let component = fs::read(component)?;
    let DecodedWasm::Component(built, built_world) = decode(&component)? else {
        anyhow::bail!("no component");
    };
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(paths::repository().join("wit"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    let ([imports, exports], [may_import, must_export]) =
        (interfaces(&built, built_world), interfaces(&resolve, world));
    assert_eq!(
        imports.difference(&may_import).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert!(imports.contains("fermyon:spin/redis@2.0.0"), "{imports:?}");
    assert_eq!(exports, must_export);
    Ok(())
}

#[test]
fn the_check_does_refuse() -> Result<()> {
    let component = fs::read(paths::component()?)?;
    let mut resolve = Resolve::default();
    let package = resolve.push_str("nothing.wit", "package verve:nothing; world nothing {}")?;
    let world = resolve.select_world(&[package], Some("nothing"))?;
    assert!(targets(&resolve, world, &component).is_err());
    Ok(())
}
