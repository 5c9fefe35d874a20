//! Tensors: a dtype, a shape and row-major bytes.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::{Buffer, DType, Element, with_element};

/// The number of elements of `shape`; `None` when it overflows `usize`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Why a tensor could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The data does not fill the shape.
    #[error("shape {shape:?} of {dtype} needs {expected} bytes, found {found}")]
    Length {
        /// Element type asked for.
        dtype: DType,
        /// Shape asked for.
        shape: Vec<usize>,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The shape has more elements than memory can address.
    #[error("shape {0:?} is too large")]
    TooLarge(Vec<usize>),
    /// The elements are of another type.
    #[error("tensor holds {found}, not {expected}")]
    DType {
        /// Type asked for.
        expected: DType,
        /// Type held.
        found: DType,
    },
    /// The new shape has another number of elements.
    #[error("cannot reshape {from:?} to {to:?}")]
    Reshape {
        /// Shape held.
        from: Vec<usize>,
        /// Shape asked for.
        to: Vec<usize>,
    },
}

/// An n-dimensional array, row-major and contiguous. Clones share the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Arc<Data>,
}

/// Where the bytes come from, and bytes in memory once somebody needs them there.
#[derive(Clone)]
struct Data {
    source: Source,
    own: OnceLock<Buffer>,
}

#[derive(Clone)]
enum Source {
    /// At any address: a file may hold tensors anywhere.
    Given(Buffer),
    /// So many bytes, which a function writes over zeros.
    Computed(usize, Arc<Compute>),
}

type Compute = dyn Fn(&mut [u8]) + Send + Sync;

impl Data {
    fn new(given: Buffer) -> Arc<Self> {
        Data::of(Source::Given(given))
    }

    fn of(source: Source) -> Arc<Self> {
        Arc::new(Data { source, own: OnceLock::new() })
    }

    fn len(&self) -> usize {
        match &self.source {
            Source::Given(given) => given.len(),
            Source::Computed(len, _) => *len,
        }
    }

    /// The given bytes, if their address is aligned for `dtype`.
    fn aligned(&self, dtype: DType) -> Option<&Buffer> {
        match &self.source {
            Source::Given(given) => Some(given).filter(|g| g.as_ptr().addr().is_multiple_of(dtype.size())),
            Source::Computed(..) => None,
        }
    }

    /// The bytes in memory of their own, which are aligned for every dtype.
    fn own(&self) -> &Buffer {
        self.own.get_or_init(|| match &self.source {
            Source::Given(given) => {
                let copy = Buffer::copy_of(given);
                given.release();
                copy
            }
            Source::Computed(len, compute) => {
                let mut made = Buffer::zeroed(*len);
                compute(made.bytes_mut());
                made
            }
        })
    }
}

impl Tensor {
    /// A tensor over `data`. If its address is not aligned for `dtype`, the first use of its elements copies it.
    ///
    /// # Errors
    /// [`TensorError::Length`] unless `data` has exactly the bytes that `dtype` and `shape` need.
    pub fn new(dtype: DType, shape: &[usize], data: Buffer) -> Result<Self, TensorError> {
        let expected = byte_count(dtype, shape)?;
        if data.len() != expected {
            let shape = shape.to_vec();
            return Err(TensorError::Length { dtype, shape, expected, found: data.len() });
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Data::new(data) })
    }

    /// A tensor whose elements `compute` writes over zeros when somebody first asks for them: what large
    /// constants are made of may lie in a file, and needs no second copy until then. Called again, `compute` must
    /// write the same.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the byte count overflows.
    pub fn computed(
        dtype: DType,
        shape: &[usize],
        compute: impl Fn(&mut [u8]) + Send + Sync + 'static,
    ) -> Result<Self, TensorError> {
        let source = Source::Computed(byte_count(dtype, shape)?, Arc::new(compute));
        Ok(Tensor { dtype, shape: shape.to_vec(), data: Data::of(source) })
    }

    /// Whether reading the elements may compute them; see [`Tensor::computed`].
    pub fn is_computed(&self) -> bool {
        matches!(self.data.source, Source::Computed(..))
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the byte count overflows or memory does not suffice.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let data = Buffer::try_zeroed(byte_count(dtype, shape)?);
        Self::new(dtype, shape, data.ok_or_else(|| TensorError::TooLarge(shape.to_vec()))?)
    }

    /// A tensor with a copy of `values` in row-major order.
    ///
    /// # Errors
    /// [`TensorError::Length`] unless there are as many values as `shape` has elements.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Result<Self, TensorError> {
        Self::new(T::DTYPE, shape, Buffer::copy_of(bytemuck::cast_slice(values)))
    }

    /// A one-dimensional tensor with a copy of `values`.
    pub fn vector<T: Element>(values: &[T]) -> Self {
        let data = Buffer::copy_of(bytemuck::cast_slice(values));
        Tensor { dtype: T::DTYPE, shape: vec![values.len()], data: Data::new(data) }
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Self {
        Tensor { shape: Vec::new(), ..Self::vector(&[value]) }
    }

    /// A tensor of `dtype` whose elements are `values` narrowed by [`Element::from_f64`].
    ///
    /// # Errors
    /// [`TensorError::Length`] unless there are as many values as `shape` has elements.
    pub fn from_f64s(dtype: DType, shape: &[usize], values: &[f64]) -> Result<Self, TensorError> {
        with_element!(dtype, T => {
            let narrow: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
            Self::from_slice(shape, &narrow)
        })
    }

    /// A tensor of `dtype` whose elements are `values` narrowed by [`Element::from_i128`].
    ///
    /// # Errors
    /// [`TensorError::Length`] unless there are as many values as `shape` has elements.
    pub fn from_i128s(dtype: DType, shape: &[usize], values: &[i128]) -> Result<Self, TensorError> {
        with_element!(dtype, T => {
            let narrow: Vec<T> = values.iter().map(|&v| T::from_i128(v)).collect();
            Self::from_slice(shape, &narrow)
        })
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extent of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The number of bytes of all elements.
    pub fn byte_len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.len() == 0
    }

    /// The elements as bytes, row-major, in the machine's byte order, aligned for the dtype.
    pub fn bytes(&self) -> &[u8] {
        self.data.aligned(self.dtype).unwrap_or_else(|| self.data.own())
    }

    /// As [`Tensor::bytes`], at any address: never copies, so what only passes over a mapped file's weights
    /// once, and then [releases](Tensor::release) them, holds no second copy.
    pub fn raw(&self) -> &[u8] {
        match &self.data.source {
            Source::Given(given) => given,
            Source::Computed(..) => self.data.own(),
        }
    }

    /// Where the elements come from, and how many bytes they are: equal for tensors that share them, [detached](
    /// Tensor::detached) or not, and for no others as long as one of them lives. Computes nothing.
    pub fn origin(&self) -> (usize, usize) {
        match &self.data.source {
            Source::Given(given) => (given.as_ptr().addr(), given.len()),
            Source::Computed(len, compute) => (Arc::as_ptr(compute).addr(), *len),
        }
    }

    /// Lets go of the memory behind elements that are mapped from a file; see [`Buffer::release`].
    pub fn release(&self) {
        if let Source::Given(given) = &self.data.source {
            given.release();
        }
    }

    /// The same elements. What [`Tensor::bytes`] of the result may have to keep, an aligned copy or computed
    /// elements, dies with the result instead of living as long as `self`.
    pub fn detached(&self) -> Self {
        match self.data.aligned(self.dtype) {
            Some(_) => self.clone(),
            None => Tensor { data: Data::of(self.data.source.clone()), ..self.clone() },
        }
    }

    /// The same bytes as a vector of `u8`, for those who copy elements without reading them: it needs no alignment,
    /// so [`Tensor::bytes`] gives them where they lie.
    pub fn as_u8(&self) -> Self {
        Tensor { dtype: DType::U8, shape: vec![self.byte_len()], data: Arc::clone(&self.data) }
    }

    /// Mutable bytes, copied first when shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if self.data.aligned(self.dtype).is_none() {
            self.data = Data::new(self.data.own().clone());
        }
        let data = Arc::make_mut(&mut self.data);
        data.own = OnceLock::new();
        match &mut data.source {
            Source::Given(given) => given.bytes_mut(),
            Source::Computed(..) => &mut [],
        }
    }

    /// The elements, row-major.
    ///
    /// # Errors
    /// [`TensorError::DType`] unless the tensor holds `T`.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        self.expect(T::DTYPE)?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// Mutable elements, copied first when shared.
    ///
    /// # Errors
    /// [`TensorError::DType`] unless the tensor holds `T`.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        self.expect(T::DTYPE)?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// All elements widened by [`Element::to_f64`].
    pub fn to_f64s(&self) -> Vec<f64> {
        with_element!(self.dtype, T => self.iter::<T>().map(T::to_f64).collect())
    }

    /// All elements widened by [`Element::to_i128`].
    pub fn to_i128s(&self) -> Vec<i128> {
        with_element!(self.dtype, T => self.iter::<T>().map(T::to_i128).collect())
    }

    /// All elements as `i64`, for shapes and indices; values out of range saturate.
    pub fn to_i64s(&self) -> Vec<i64> {
        let clamp = |v: i128| i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX });
        self.to_i128s().into_iter().map(clamp).collect()
    }

    /// All elements as `f32`.
    pub fn to_f32s(&self) -> Vec<f32> {
        match self.as_slice::<f32>() {
            Ok(values) => values.to_vec(),
            Err(_) => self.to_f64s().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// The same values in another dtype, by the rules of [`Element::from_f64`] and [`Element::from_i128`].
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        let made = if self.dtype.is_float() {
            Self::from_f64s(dtype, &self.shape, &self.to_f64s())
        } else {
            Self::from_i128s(dtype, &self.shape, &self.to_i128s())
        };
        made.expect("a tensor in memory has an addressable shape")
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// [`TensorError::Reshape`] when the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, TensorError> {
        if element_count(shape) != Some(self.len()) {
            let (from, to) = (self.shape.clone(), shape.to_vec());
            return Err(TensorError::Reshape { from, to });
        }
        Ok(Tensor { dtype: self.dtype, shape: shape.to_vec(), data: Arc::clone(&self.data) })
    }

    fn iter<T: Element>(&self) -> impl Iterator<Item = T> + '_ {
        bytemuck::cast_slice::<u8, T>(self.bytes()).iter().copied()
    }

    fn expect(&self, expected: DType) -> Result<(), TensorError> {
        match self.dtype == expected {
            true => Ok(()),
            false => Err(TensorError::DType { expected, found: self.dtype }),
        }
    }
}

/// Equal dtype, shape and bytes: NaN equals NaN of the same bits, 0.0 differs from -0.0.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.raw() == other.raw()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        const SHOWN: usize = 16;
        let values = self.to_f64s();
        let dots = if values.len() > SHOWN { " …" } else { "" };
        write!(f, " {:?}{dots}", &values[..values.len().min(SHOWN)])
    }
}

fn byte_count(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    element_count(shape)
        .and_then(|n| n.checked_mul(dtype.size()))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| TensorError::TooLarge(shape.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_buffers_are_aligned() {
        for len in [1, 63, 64, 65, 1000] {
            let tensor = Tensor::zeros(DType::U8, &[len]).unwrap();
            assert!(tensor.bytes().as_ptr().addr().is_multiple_of(crate::ALIGNMENT));
            assert_eq!(tensor.len(), len);
        }
    }

    #[test]
    fn wrong_lengths_and_huge_shapes_are_errors() {
        assert!(matches!(Tensor::from_slice(&[2, 2], &[1f32; 3]), Err(TensorError::Length { .. })));
        let huge = [usize::MAX, 2];
        assert!(matches!(Tensor::zeros(DType::F32, &huge), Err(TensorError::TooLarge(_))));
        assert!(Tensor::zeros(DType::F32, &[usize::MAX / 16]).is_err());
    }

    #[test]
    fn mutation_copies_shared_bytes() {
        let original = Tensor::vector(&[1i32, 2, 3]);
        let mut copy = original.clone();
        copy.as_mut_slice::<i32>().unwrap()[0] = 9;
        assert_eq!(original.as_slice::<i32>().unwrap(), [1, 2, 3]);
        assert_eq!(copy.as_slice::<i32>().unwrap(), [9, 2, 3]);
    }

    #[test]
    fn casts_follow_the_element_rules() {
        let floats = Tensor::vector(&[-1.5f32, 0.0, 300.0]);
        assert_eq!(floats.cast(DType::U8).to_i64s(), [0, 0, 255]);
        assert_eq!(floats.cast(DType::Bool).to_i64s(), [1, 0, 1]);
        assert_eq!(Tensor::vector(&[300i64]).cast(DType::U8).to_i64s(), [44]);
    }

    #[test]
    fn computed_elements_are_made_once_for_each_detached_copy() {
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let tensor = Tensor::computed(DType::I16, &[2, 2], move |bytes| {
            let count = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            bytes.fill(if count < 2 { 1 } else { 2 });
        });
        let tensor = tensor.unwrap();
        assert_eq!((tensor.len(), tensor.byte_len(), tensor.is_computed()), (4, 8, true));
        let detached = tensor.detached();
        assert_eq!(detached.origin(), tensor.origin());
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert_eq!(detached.to_i64s(), [257; 4]);
        assert_eq!(detached.raw(), [1; 8]);
        assert_eq!(tensor.clone().reshape(&[4]).unwrap(), detached.reshape(&[4]).unwrap());
        let mut changed = tensor.clone();
        changed.as_mut_slice::<i16>().unwrap()[3] = 7;
        assert_eq!((changed.to_i64s(), changed.is_computed()), (vec![257, 257, 257, 7], false));
        assert_eq!(tensor.to_i64s(), [257; 4]);
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert!(Tensor::computed(DType::I16, &[usize::MAX, 2], |_| ()).is_err());
    }

    #[test]
    fn mapped_files_are_shared_and_realigned() {
        let path = std::env::temp_dir().join(format!("sora-tensor-{}", std::process::id()));
        std::fs::write(&path, [0u8, 1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        let map = Buffer::map(&std::fs::File::open(&path).unwrap()).unwrap();
        let part = map.slice(1..9).unwrap();
        assert!(map.slice(1..10).is_none());
        let tensor = Tensor::new(DType::I32, &[2], part).unwrap();
        let detached = tensor.detached();
        assert_eq!(detached.as_slice::<i32>().unwrap(), [1, 2]);
        assert!(tensor.data.own.get().is_none());
        assert_eq!(tensor.as_u8().bytes().as_ptr(), tensor.raw().as_ptr());
        assert_eq!(tensor.raw(), detached.bytes());
        tensor.release();
        assert_eq!(tensor.as_slice::<i32>().unwrap(), [1, 2]);
        let mut changed = tensor.clone();
        changed.as_mut_slice::<i32>().unwrap()[0] = 9;
        assert_eq!((tensor.to_i64s(), changed.to_i64s()), (vec![1, 2], vec![9, 2]));
        assert_eq!(map.part(&map[3..5]).unwrap()[..], map[3..5]);
        assert!(map.part(&[0u8; 2]).is_none());
        std::fs::remove_file(&path).unwrap();
    }
}
