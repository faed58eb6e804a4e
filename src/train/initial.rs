//! Where a run's adapter begins: fresh from the seed, or with the adapters of `--init-adapter`.

use crate::checkpoint::state::{Identity, State};
use crate::config::Settings;
use crate::error::Result;
use crate::model::{Adapter, AdapterSpec, Layout, Spec, Weights, fold};

/// Adapter specification, layout and flat initial values. Of several adapters all but the last are folded into
/// `weights`; what the last one decides is filled into the settings, and the digests of all into the identity. A
/// run that continues does not need the last one any more.
///
/// # Errors
/// An adapter that cannot be read or does not fit the model; settings that name no layer.
pub fn initial_adapter(
    s: &mut Settings,
    spec: &Spec,
    weights: &mut Weights,
    resumed: Option<&State>,
    identity: &mut Identity,
) -> Result<(AdapterSpec, Layout, Vec<f32>)> {
    let folders = s.init_adapter.clone();
    let Some((last, folded)) = folders.split_last() else {
        let adapter = AdapterSpec::from_settings(s);
        let layout = Layout::new(spec, &adapter)?;
        let values = layout.initial(s.seed);
        identity.0.insert("adapter.initial".into(), digest(&values));
        return Ok((adapter, layout, values));
    };
    for (index, folder) in folded.iter().enumerate() {
        let adapter = Adapter::read(folder, spec)?;
        fold::fold(weights, &adapter)?;
        identity.0.insert(format!("adapter.folded.{index}"), adapter.digest());
    }
    let read = match (Adapter::read(last, spec), resumed) {
        (Err(_), Some(state)) => return continued(s, spec, state, identity),
        (read, _) => read?,
    };
    identity.0.insert("adapter.initial".into(), digest(&read.values));
    read.spec.into_settings(s);
    Ok((AdapterSpec::from_settings(s), read.layout, read.values))
}

/// The adapter of a run whose first folder is gone: the settings and the checkpoint have all it decided.
fn continued(
    s: &Settings,
    spec: &Spec,
    state: &State,
    identity: &mut Identity,
) -> Result<(AdapterSpec, Layout, Vec<f32>)> {
    let known = state.identity.0.get("adapter.initial");
    identity.0.extend(known.map(|digest| ("adapter.initial".into(), digest.clone())));
    let adapter = AdapterSpec::from_settings(s);
    let layout = Layout::new(spec, &adapter)?;
    let values = layout.initial(s.seed);
    Ok((adapter, layout, values))
}

fn digest(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex().to_string()
}
