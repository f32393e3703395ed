//! The built component against the world in `wit/`: it offers what the world exports and imports nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use verve_tests::paths;
use wit_component::targets;
use wit_parser::Resolve;

/// Whether a build needs no more and offers no less than a world says.
fn check(component: &Path, world: &str) -> Result<()> {
    let component = fs::read(component)?;
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(paths::repository().join("wit"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    targets(&resolve, world, &component).context("the component needs more than wit/ says, or offers less")
}

#[test]
fn the_component_fits_its_world() -> Result<()> {
    check(&paths::component()?, "accept")
}

#[test]
fn the_component_without_a_spool_fits_a_smaller_one() -> Result<()> {
    check(&paths::component_without_spool()?, "accept-without-spool")?;
    assert!(check(&paths::component()?, "accept-without-spool").is_err());
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
